"""Outputs for audio as it is generated: a WAV file that appears when complete, raw PCM on a pipe, the loudspeaker."""

from __future__ import annotations

import os
import tempfile
import wave
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import numpy as np

from tokenizer.audio import AUDIO_SUFFIXES
from tokenizer.errors import InputError
from tokenizer.live import to_pcm


class AudioSink(Protocol):
    """Accepts float32 [S] pieces of one mono stream, in order."""

    def write(self, audio: np.ndarray) -> None: ...


class PipeSink:
    """Raw 16-bit little-endian PCM, flushed after each piece."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe

    def write(self, audio: np.ndarray) -> None:
        self._pipe.write(to_pcm(audio))
        self._pipe.flush()


class SpeakerSink:
    """The loudspeaker, through the package `sounddevice`. A context manager: on exit it plays to the end.

    Attributes:
        underruns: buffer underruns since the first sound.

    Raises:
        InputError: the package or the device is missing.
    """

    def __init__(self, sample_rate: int) -> None:
        self._stream = open_device("OutputStream", "loudspeaker", sample_rate)
        self.underruns = 0
        self._begun = False

    def write(self, audio: np.ndarray) -> None:
        ran_dry = self._stream.write(np.ascontiguousarray(audio[:, None], dtype=np.float32))
        self.underruns += bool(ran_dry) and self._begun  # before the first sound the buffer is empty anyway
        self._begun = True

    def __enter__(self) -> SpeakerSink:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._stream.stop()  # plays what is left
        self._stream.close()


def record(seconds: float, sample_rate: int) -> np.ndarray:
    """Record from the microphone, float32 [S]. Raises InputError."""
    stream = open_device("InputStream", "microphone", sample_rate)
    try:
        samples, _ = stream.read(round(seconds * sample_rate))
    finally:
        stream.close()
    return samples[:, 0].copy()


def sound_devices(name: str) -> Any:
    """The package `sounddevice`. Raises InputError if it or the library PortAudio is missing."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: the package is there, the library PortAudio is not
        raise InputError(
            f'{name}: sound devices cannot be used ({error}); pip install "focalstream[audio]", and on Linux the '
            "library PortAudio (libportaudio2)"
        ) from None
    return sounddevice


def open_device(kind: str, name: str, sample_rate: int) -> Any:
    """A running `sounddevice` stream with one channel. Raises InputError."""
    sounddevice = sound_devices(name)
    try:
        stream = getattr(sounddevice, kind)(samplerate=sample_rate, channels=1, dtype="float32")
        stream.start()
    except sounddevice.PortAudioError as error:
        raise InputError(f"{name}: cannot be opened ({error}); give a file, or - for a pipe") from None
    return stream


class WavSink:
    """A 16-bit WAV file, written piece by piece under a hidden name in the same folder. Symbolic links are followed.

    A context manager: a clean exit completes the header and renames the file; after an error nothing is left. Ctrl-C
    counts as a clean exit, because it is the only way to end an endless session.

    Raises:
        InputError: the folder does not exist, or the path is a folder, a device or a named pipe.
    """

    def __init__(self, path: Path, sample_rate: int) -> None:
        self.check(path)
        self._path = Path(os.path.realpath(path))  # a link stays a link: its target is replaced
        descriptor, self._temporary = tempfile.mkstemp(dir=self._path.parent, prefix=".unfinished.")
        self._file = os.fdopen(descriptor, "w+b")
        self._wav = wave.open(self._file, "wb")  # noqa: SIM115 - closed in __exit__
        self._wav.setparams((1, 2, sample_rate, 0, "NONE", "not compressed"))

    @staticmethod
    def check(path: Path) -> None:
        """Raise InputError if no WAV file of this name can be written."""
        if path.suffix.lower() in AUDIO_SUFFIXES - {".wav"}:
            raise InputError(f"{path}: a continuation is written as WAV; give a name that ends in .wav")
        folder = Path(os.path.realpath(path)).parent
        if not folder.is_dir() and not path.exists():
            raise InputError(f"{path}: the folder {folder} does not exist; make it first")
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name a .wav file")
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: exists and is not a regular file; name a .wav file, or - for standard output")

    def write(self, audio: np.ndarray) -> None:
        self._wav.writeframesraw(to_pcm(audio))

    def __enter__(self) -> WavSink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        is_whole = kind is None or issubclass(kind, KeyboardInterrupt)
        try:
            with self._file:
                if is_whole:
                    self._wav.writeframes(b"")  # writes the header's lengths
                    self._file.flush()
                    os.fsync(self._file.fileno())
                self._wav.close()
            if is_whole:  # Windows does not rename an open file
                os.chmod(self._temporary, 0o644)
                os.replace(self._temporary, self._path)
        finally:
            Path(self._temporary).unlink(missing_ok=True)
