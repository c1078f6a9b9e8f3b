"""Audio files: one way in (any rate, any number of channels, to mono float32 at the wanted rate) and one way out."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from tokenizer.errors import InputError
from tokenizer.files import write_atomically

AUDIO_SUFFIXES = frozenset(
    (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64", ".sph")
)
SHORTAGE_SECONDS = 0.025  # audio may end this much before a header or a manifest says, as in Lhotse
UNKNOWN_SIZE = 0x7FFF0000  # bytes; what writes into a pipe announces about 2^31 or 2^32, not knowing better
LOUDEST = 1e4  # a peak above this is no audio: the spectrum would overflow, and its tokens mean nothing


def read_audio(path: str | Path, sample_rate: int, seconds: float = math.inf) -> np.ndarray:
    """Read a sound file as mono.

    Args:
        path: anything libsndfile reads (WAV, FLAC, Ogg Vorbis or Opus, MP3, ...).
        sample_rate: Hz to resample to.
        seconds: read so much from the beginning at most.

    Returns:
        float32 [S] in [-1, 1]; several channels are averaged.

    Raises:
        FileNotFoundError, PermissionError: when there is no such file, or it may not be read.
        InputError: when it is no sound file, is damaged or cut off, is empty, or holds NaN, infinite or absurdly loud
            samples.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(2, "no such file", str(path))
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected a sound file (`focalstream tokenize` takes folders)")
    path.open("rb").close()  # says what libsndfile does not: that the file may not be read
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            wave = file.read(int(min(seconds * rate, file.frames)), dtype="float32", always_2d=True)
            missing = why_cut_off(file) if len(wave) and file.tell() == file.frames else None
    except (soundfile.LibsndfileError, TypeError) as error:  # the latter: a .raw file, which says no rate
        reason = str(error).split(": ", 1)[-1]
        raise InputError(f"{path}: not a readable sound file ({reason}) Convert it to WAV or FLAC first.") from None
    if missing is not None:
        raise InputError(f"{path}: is truncated: {missing}. Copy or record it again, or `sox` it to keep what is there")
    return to_mono(wave.T, rate, sample_rate, str(path))


def why_cut_off(file: Any) -> str | None:
    """What tells that an open SoundFile was longer when it was written; None where nothing does.

    libsndfile fits such a file's length to what is left of it, so nothing would be missed: a copy that broke off would
    pass for the whole recording. Its log of the header tells.
    """
    for line in file.extra_info.splitlines():
        if "without an End-Of-Stream flag" in line or "lacks an end-of-stream bit" in line:
            return "the Ogg stream has no end; was the copy or the recording broken off?"
        sizes = re.search(r": (\d+) \(should be (\d+)\)", line)
        if sizes is None or int(sizes[1]) >= UNKNOWN_SIZE:
            continue
        missing, there = int(sizes[1]) - int(sizes[2]), max(int(sizes[2]), 1)
        if missing * max(file.frames, 1) > SHORTAGE_SECONDS * file.samplerate * there:
            return f"its header announces {sizes[1]} bytes, but there are {sizes[2]}"
    return None


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
