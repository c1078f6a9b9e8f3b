"""Codecs that anyone can install, for scale: Codec2 and Opus, run by their own programs.

Decoders delay their output, so each clip is aligned with its original before it is measured.

Legend: S samples.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from tokenizer.metrics import METRICS_RATE

CODEC2_RATE = 8000  # Hz
LONGEST_DELAY = 2000  # samples at 16 kHz, 125 ms


@dataclass(frozen=True)
class Peer:
    """A codec behind programs. `through` takes (wave, mode, scratch folder)."""

    name: str
    bitrate: float  # bits per second
    mode: str
    programs: tuple[str, ...]
    package: str  # the Debian package that has them
    through: Callable[[np.ndarray, str, Path], np.ndarray]

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        absent = [program for program in self.programs if shutil.which(program) is None]
        return f"{' and '.join(absent)} not installed (Debian: {self.package})" if absent else None

    def resynthesise(self, wave: np.ndarray) -> np.ndarray:
        """float32 [S] at 16 kHz -> [S], aligned with it."""
        with tempfile.TemporaryDirectory() as folder:
            return aligned(self.through(wave, self.mode, Path(folder)), wave)


def codec2(wave: np.ndarray, mode: str, folder: Path) -> np.ndarray:
    """float32 [S] at 16 kHz through Codec2 in `mode` ("700C", "1200", ...)."""
    pcm = np.rint(np.clip(soxr.resample(wave, METRICS_RATE, CODEC2_RATE), -1, 1) * 32767).astype("<i2")
    (folder / "in.raw").write_bytes(pcm.tobytes())
    subprocess.run(["c2enc", mode, folder / "in.raw", folder / "c2"], check=True, capture_output=True)
    subprocess.run(["c2dec", mode, folder / "c2", folder / "out.raw"], check=True, capture_output=True)
    out = np.frombuffer((folder / "out.raw").read_bytes(), "<i2").astype(np.float32) / 32768
    return soxr.resample(out, CODEC2_RATE, METRICS_RATE)


def opus(wave: np.ndarray, kbps: str, folder: Path) -> np.ndarray:
    """float32 [S] at 16 kHz through Opus at `kbps`."""
    soundfile.write(folder / "in.wav", wave, METRICS_RATE)
    encode: list[str | Path] = [
        "opusenc",
        "--quiet",
        "--hard-cbr",
        "--bitrate",
        kbps,
        folder / "in.wav",
        folder / "o.opus",
    ]
    subprocess.run(encode, check=True)
    decode: list[str | Path] = [
        "opusdec",
        "--quiet",
        "--rate",
        str(METRICS_RATE),
        folder / "o.opus",
        folder / "out.wav",
    ]
    subprocess.run(decode, check=True, capture_output=True)
    return soundfile.read(folder / "out.wav", dtype="float32")[0]


def aligned(decoded: np.ndarray, wave: np.ndarray) -> np.ndarray:
    """`decoded` without its delay, found where it correlates best with `wave`."""
    samples = min(len(wave), len(decoded))
    spectrum = np.fft.rfft(decoded[:samples], 2 * samples) * np.conj(np.fft.rfft(wave[:samples], 2 * samples))
    delay = int(np.argmax(np.abs(np.fft.irfft(spectrum)[:LONGEST_DELAY])))
    return np.pad(decoded[delay:], (0, max(0, len(wave) - len(decoded) + delay)))[: len(wave)]


CODEC2 = (("c2enc", "c2dec"), "codec2", codec2)
PEERS = (
    Peer("Codec2 700C", 700, "700C", *CODEC2),
    Peer("Codec2 1200", 1200, "1200", *CODEC2),
    Peer("Codec2 3200", 3200, "3200", *CODEC2),
    Peer("Opus 6", 6000, "6", ("opusenc", "opusdec"), "opus-tools", opus),
)
