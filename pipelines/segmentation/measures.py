"""What the audio of a segment is like: values for its cut, and limits that it may be dropped by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tokenizer.errors import InputError

CLIPPED = 0.999  # of full scale
FFT = 1024
BELOW_PEAK = 50.0  # dB; bands that far below the strongest are taken for empty


@dataclass(frozen=True)
class Limits:
    """Segments beyond a limit are dropped; None: no limit, and without any no audio is measured.

    Attributes:
        min_level: dB below full scale, of the mean power.
        max_clipped: share of samples at full scale.
        min_bandwidth: Hz.
        min_dnsmos: predicted mean opinion score, from 1 to 5; 1 drops nothing.
    """

    min_level: float | None = None
    max_clipped: float | None = None
    min_bandwidth: float | None = None
    min_dnsmos: float | None = None

    def __post_init__(self) -> None:
        if self.max_clipped is not None and not 0 <= self.max_clipped <= 1:
            raise InputError(f"max_clipped is {self.max_clipped}, expected a share from 0 to 1")
        if self.min_dnsmos is not None and not 1 <= self.min_dnsmos <= 5:
            raise InputError(f"min_dnsmos is {self.min_dnsmos}, expected an opinion score from 1 to 5")

    @property
    def any(self) -> bool:
        return self != Limits()

    def broken(self, values: dict[str, float]) -> str | None:
        """The name of the first value that is beyond its limit."""
        if self.min_level is not None and values["level_dbfs"] < self.min_level:
            return "level_dbfs"
        if self.max_clipped is not None and values["clipped"] > self.max_clipped:
            return "clipped"
        if self.min_bandwidth is not None and values["bandwidth_hz"] < self.min_bandwidth:
            return "bandwidth_hz"
        if self.min_dnsmos is not None and values["dnsmos"] < self.min_dnsmos:
            return "dnsmos"
        return None


def load_dnsmos() -> Callable[[np.ndarray], float]:
    """What predicts the mean opinion score of float samples [S] at `METRICS_RATE` Hz: DNSMOS (see `package_judges`).

    Raises:
        InputError: the package with its weights is not installed.
    """
    from tokenizer.metrics import package_judges

    try:
        judge = package_judges.load_dnsmos()
    except ImportError as error:
        raise InputError(f"DNSMOS: {error}; {package_judges.HINTS['dnsmos']}, or leave out --min-dnsmos") from None
    return lambda wave: round(judge(wave, wave), 2)


def measure(wave: np.ndarray, sample_rate: int) -> dict[str, float]:
    """`level_dbfs` (mean power), `clipped` (share of samples at full scale) and `bandwidth_hz` of float samples [S].

    The bandwidth is the highest frequency whose mean power is within `BELOW_PEAK` dB of the strongest's: what was once
    sampled at 8 kHz has less than 4 kHz at any rate.
    """
    power = float(np.mean(np.square(wave, dtype=np.float64)))
    padded = np.pad(wave, (0, max(0, FFT - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[:: FFT // 2]
    spectrum = np.zeros(FFT // 2 + 1)
    for block in np.array_split(frames, max(1, len(frames) // 512)):
        spectrum += np.square(np.abs(np.fft.rfft(block * np.hanning(FFT)))).sum(0)
    loud = np.flatnonzero(spectrum > spectrum.max() * 10 ** (-BELOW_PEAK / 10))
    return {
        "level_dbfs": round(10 * float(np.log10(max(power, 1e-12))), 1),
        "clipped": round(float(np.mean(np.abs(wave) >= CLIPPED)), 5),
        "bandwidth_hz": round(float(loud[-1]) * sample_rate / FFT) if len(loud) else 0,
    }
