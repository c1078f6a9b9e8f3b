"""Speech as it might have been recorded elsewhere: other speeds, levels, bandwidths, rooms and noises.

A change is drawn for each row and applied to what the codec hears and to what it is to give back alike.

Legend: S samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import soxr
from scipy import signal

from tokenizer.errors import InputError

LOWEST_CUT = 3000.0  # Hz, of the narrowest band: below it speech loses its vowels
ROOM_SECONDS = 0.3  # kept of a room's answer
REVERBERATION = (0.1, 0.5)  # seconds until the answer has fallen by 60 dB
DIRECT = (0.0, 12.0)  # dB of the direct sound over the rest of the answer


@dataclass(frozen=True)
class Augmentation:
    """How often and how much. All zero: nothing is changed.

    Attributes:
        speed: largest relative change of speed and pitch, which go together, such as 0.1.
        level: largest change of level, dB; rows that would clip are turned down again.
        bandwidth: share of rows that lose what lies above a random frequency from 3 kHz on.
        room: share of rows that sound as in a room, by noise that decays (0.1 to 0.5 s to -60 dB).
        noise: share of rows with noise added, its spectrum falling by 0 to 6 dB an octave.
        noise_db: lowest ratio of speech to noise, dB; the highest is 20 dB more.
    """

    speed: float = 0.0
    level: float = 0.0
    bandwidth: float = 0.0
    room: float = 0.0
    noise: float = 0.0
    noise_db: float = 10.0

    def __post_init__(self) -> None:
        for name in ("bandwidth", "room", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"augment.{name} is {getattr(self, name)}, expected a share from 0 to 1")
        if not 0 <= self.speed <= 0.5:
            raise InputError(f"augment.speed is {self.speed}, expected 0 to 0.5")
        for name in ("level", "noise_db"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"augment.{name} is {getattr(self, name)}, expected 0 dB or more")

    def speed_factor(self, rng: np.random.Generator) -> float:
        """Samples of the recording that go into one sample of a row."""
        return float(np.exp(rng.uniform(-1, 1) * np.log1p(self.speed))) if self.speed else 1.0

    def apply(self, wave: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
        """Everything but the speed, on float32 [S] at `rate` Hz."""
        if rng.random() < self.room:
            wave = in_room(wave, rate, rng)
        if rng.random() < self.bandwidth:
            wave = narrowed(wave, rate, rng.uniform(LOWEST_CUT, rate / 2))
        if rng.random() < self.noise:
            wave = wave + noise(wave, rng, self.noise_db + rng.uniform(0, 20))
        if self.level:
            wave = wave * 10 ** (rng.uniform(-1, 1) * self.level / 20)
        return (wave / max(1.0, float(np.abs(wave).max(initial=0)))).astype(np.float32)


NO_AUGMENTATION = Augmentation()


def at_speed(wave: np.ndarray, factor: float, samples: int) -> np.ndarray:
    """float32 [S] played `factor` times as fast, at most `samples` of it."""
    if factor == 1 or len(wave) == 0:
        return wave[:samples]
    return soxr.resample(wave, factor, 1.0, quality="MQ")[:samples]


def narrowed(wave: np.ndarray, rate: int, cut: float) -> np.ndarray:
    """Without what lies above `cut` Hz (a Butterworth filter of order 8, twice)."""
    if cut >= 0.99 * rate / 2:
        return wave
    return signal.sosfiltfilt(signal.butter(8, cut, fs=rate, output="sos"), wave, padlen=min(len(wave) - 1, 100))


def in_room(wave: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """As in a room whose answer is noise that decays, behind the direct sound; at the level of before."""
    t = np.arange(int(ROOM_SECONDS * rate)) / rate
    tail = rng.normal(size=len(t)) * 10 ** (-3 * t / rng.uniform(*REVERBERATION))
    tail *= 10 ** (-rng.uniform(*DIRECT) / 20) / np.linalg.norm(tail)
    wet = wave + signal.fftconvolve(wave, tail)[: len(wave)]
    return wet * (np.linalg.norm(wave) / max(float(np.linalg.norm(wet)), 1e-9))


def noise(wave: np.ndarray, rng: np.random.Generator, ratio_db: float) -> np.ndarray:
    """Noise of [S], `ratio_db` below the wave's power."""
    spectrum = np.fft.rfft(rng.normal(size=len(wave)))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1.0) ** -rng.uniform(0, 1)
    shaped = np.fft.irfft(spectrum, len(wave))
    power = float(np.square(wave).mean()) / max(float(np.square(shaped).mean()), 1e-20)
    return shaped * math.sqrt(power * 10 ** (-ratio_db / 10))
