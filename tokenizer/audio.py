"""Audio files: one way in (any rate, any number of channels, to mono float32 at the wanted rate) and one way out."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from tokenizer.audio_input.byte_source import ByteSource, open_path
from tokenizer.audio_input.contents import LOUDEST, BadAudio, NoAudio
from tokenizer.audio_input.kinds import AUDIO_SUFFIXES
from tokenizer.audio_input.reader import BLOCK_SECONDS, AudioReader
from tokenizer.errors import InputError
from tokenizer.files import write_atomically

MAX_BLOCK_VALUES = 1 << 26  # decoded at once; a header may announce any length


def read_audio(path: str | Path, sample_rate: int, seconds: float = math.inf) -> np.ndarray:
    """Read a sound file as mono.

    Args:
        path: a file or pipe of any kind that `AudioReader` reads (WAV, FLAC, Ogg, MP3; M4A, WebM, ... with PyAV).
        sample_rate: Hz to resample to.
        seconds: read so much from the beginning at most.

    Returns:
        float32 [S] in [-1, 1]; several channels are averaged.

    Raises:
        FileNotFoundError, PermissionError: when there is no such file, or it may not be read.
        InputError: when it is no sound file, is damaged or cut off, is empty, or holds NaN, infinite or absurdly loud
            samples. Of what lies behind `seconds` nothing is known.
    """
    if Path(path).is_dir():
        raise InputError(f"{path}: is a folder; expected a sound file (`focalstream tokenize` takes folders)")
    source = open_path(path)
    try:
        blocks = list(_mono_blocks(source, str(path), seconds, BLOCK_SECONDS, lambda _: None))
    finally:
        source.close()
    rate = blocks[0][0] if blocks else sample_rate
    wave = np.concatenate([block for _, block in blocks] or [np.zeros(0, np.float32)])
    return to_mono(wave[None], rate, sample_rate, str(path))


def read_sound(
    source: ByteSource,
    name: str,
    sample_rate: int,
    seconds: float,
    block_seconds: float,
    accept: Callable[[AudioReader], None],
) -> np.ndarray:
    """The same in little memory: blocks of `block_seconds` are decoded, mixed and resampled one after another.

    Args:
        name: what messages call the source.
        accept: may refuse what the header says, before anything is decoded.
    """
    stream, parts = None, []
    for rate, block in _mono_blocks(source, name, seconds, block_seconds, accept):
        stream = stream or soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")
        parts.append(block if rate == sample_rate else stream.resample_chunk(block))
    if stream is not None:
        parts.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    return to_mono(np.concatenate(parts or [np.zeros(0, np.float32)])[None], sample_rate, sample_rate, name)


def _mono_blocks(
    source: ByteSource, name: str, seconds: float, block_seconds: float, accept: Callable[[AudioReader], None]
) -> Iterator[tuple[int, np.ndarray]]:
    """Rate in Hz and float32 [n], block after block."""
    try:
        reader = AudioReader(source)
        accept(reader)
        rate = reader.sample_rate
        frames = None if seconds == math.inf else int(seconds * rate)
        size = min(int(block_seconds * rate), MAX_BLOCK_VALUES // reader.channels, frames or MAX_BLOCK_VALUES)
        for block in reader.read(0, frames, max(1, size)):
            yield rate, to_mono(block.T, rate, rate, name)
    except BadAudio as error:
        raise InputError(f"{name}: {_advice(error, name)}") from None


def _advice(error: BadAudio, path: str | Path) -> str:
    """What is wrong with a file, and what to do."""
    if error.reason == "zero length":
        return "holds no samples"
    if error.reason == "unreadable":
        suffix = Path(path).suffix.lower()
        named = f" (no {suffix[1:].upper()} in it)" if isinstance(error, NoAudio) and suffix in AUDIO_SUFFIXES else ""
        return f"not a readable sound file{named}: {error}. Convert it to WAV or FLAC first"
    return f"is {error.reason}: {error}. Copy or record it again, or `sox` it to keep what is there"


def to_mono(channels: np.ndarray, rate: int, sample_rate: int, source: str) -> np.ndarray:
    """Average channels [C, S] at `rate` Hz and resample to `sample_rate` Hz: float32 [S]. Raises InputError."""
    if channels.shape[1] == 0:
        raise InputError(f"{source}: holds no samples")
    if not np.isfinite(channels).all():
        raise InputError(f"{source}: holds NaN or infinite samples; repair or drop this recording")
    if (peak := float(np.abs(channels).max())) > LOUDEST:
        raise InputError(f"{source}: has a peak of {peak:g}; expected samples in about [-1, 1]. Scale it first")
    wave = channels.mean(axis=0, dtype=np.float32)
    wave = wave if rate == sample_rate else soxr.resample(wave, rate, sample_rate)
    if not len(wave):
        raise InputError(f"{source}: too short; nothing is left of it at {sample_rate} Hz")
    return wave


def check_output(output: str | Path, *inputs: str | Path) -> None:
    """Raise InputError where a command would write over a file that it reads."""
    for path in inputs:
        if Path(path).is_file() and Path(output).is_file() and Path(output).samefile(path):
            raise InputError(f"{output}: is also what is read; give the output another name")


def audio_format(path: str | Path) -> str:
    """What a file of that name is to be: "FLAC" or "WAV".

    Raises:
        InputError: the name promises another kind of sound file.
    """
    suffix = Path(path).suffix.lower()
    if suffix in AUDIO_SUFFIXES - {".wav", ".flac"}:
        raise InputError(f"{path}: {suffix} cannot be written; give a name that ends in .wav or .flac")
    return "FLAC" if suffix == ".flac" else "WAV"


def write_audio(path: str | Path, wave: np.ndarray, sample_rate: int) -> None:
    """Write float samples [S] as 16 bits of the format that the name says. The file appears whole, by rename, or not
    at all.

    Raises:
        InputError: when the name promises a format that is not written, or the folder does not exist.
    """
    _write(path, wave, sample_rate, audio_format(path))


def write_wav(path: str | Path, wave: np.ndarray, sample_rate: int) -> None:
    """Write float samples [S] as 16-bit PCM WAV. The file appears whole, by rename, or not at all.

    Raises:
        InputError: when the folder does not exist.
    """
    _write(path, wave, sample_rate, "WAV")


def _write(path: str | Path, wave: np.ndarray, sample_rate: int, kind: str) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave, -1.0, 1.0), sample_rate, subtype="PCM_16", format=kind)
    write_atomically(path, buffer.getvalue())
