"""Pitch and voicing: a YIN tracker, and the errors of a resynthesis in both.

YIN: de Cheveigne and Kawahara, JASA 111 (2002), its steps 1 to 5, without the search for a better local estimate.
In place of step 4's first dip below a threshold comes the first dip about as deep as the deepest, which mistakes fewer
octaves.

Legend: S samples, T frames, L lags.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tokenizer.metrics.intrusive import METRICS_RATE

LOWEST, HIGHEST = 60.0, 500.0  # Hz, of speech, children included
HOP = 160  # samples at 16 kHz: 10 ms
WINDOW = 480  # samples compared with their shift, 30 ms: nearly two periods of the lowest voice
APERIODIC = 0.2  # a frame is voiced where the normalised difference falls below: a fifth of its power is not periodic
NEARLY = 0.1  # a dip so much above the deepest is as good: of a period and its double, the period is wanted
QUIET = 1e-3  # and its power above this part (-30 dB) of the clip's loud frames


class PitchErrors(NamedTuple):
    """Differences in pitch, over frames that are voiced in both; None where there is none."""

    f0_rmse_hz: float | None
    f0_rmse_cents: float | None
    voicing_error: float  # share of frames voiced in one and not in the other


def pitch_errors(reference: np.ndarray, degraded: np.ndarray) -> PitchErrors:
    """Compare float32 [S] with [S] at 16 kHz, aligned; the longer is cut to the shorter."""
    samples = min(len(reference), len(degraded))
    wanted, got = track(reference[:samples]), track(degraded[:samples])
    both = (wanted > 0) & (got > 0)
    voicing = float(((wanted > 0) != (got > 0)).mean())
    if not both.any():
        return PitchErrors(None, None, voicing)
    cents = 1200 * np.log2(got[both] / wanted[both])
    return PitchErrors(_rms(got[both] - wanted[both]), _rms(cents), voicing)


def track(wave: np.ndarray) -> np.ndarray:
    """The pitch of each 10 ms: float32 [S] at 16 kHz -> float64 [T] in Hz, 0 where unvoiced, T = ceil(S / 160)."""
    shortest, longest = int(METRICS_RATE / HIGHEST), int(METRICS_RATE / LOWEST)
    span = WINDOW + longest + 1
    padded = np.pad(wave.astype(np.float64), (span // 2, span))
    frames = np.lib.stride_tricks.sliding_window_view(padded, span)[::HOP][: -(-len(wave) // HOP)]
    power = np.square(frames[:, :WINDOW]).mean(1)
    dips = _normalised_difference(frames, longest + 1)
    best = _first_dip(dips[:, shortest : longest + 1]) + shortest
    rows = np.arange(len(dips))
    voiced = (dips[rows, best] < APERIODIC) & (power > QUIET * np.percentile(power, 95))
    return np.where(voiced, METRICS_RATE / (best + _parabola(dips, best)), 0.0)


def _normalised_difference(frames: np.ndarray, lags: int) -> np.ndarray:
    """[T, WINDOW + lags] -> the cumulative mean normalised difference [T, lags + 1] at lags 0 (always 1) to `lags`."""
    size = 1 << (frames.shape[1] - 1).bit_length()
    head = np.fft.rfft(frames[:, :WINDOW], size)
    correlation = np.fft.irfft(np.conj(head) * np.fft.rfft(frames, size), size)[:, : lags + 1]
    energy = np.cumsum(np.pad(np.square(frames), ((0, 0), (1, 0))), axis=1)
    shifted = energy[:, WINDOW : WINDOW + lags + 1] - energy[:, : lags + 1]
    difference = np.maximum(shifted[:, :1] + shifted - 2 * correlation, 0)
    running = np.cumsum(difference[:, 1:], axis=1) / np.arange(1, lags + 1)
    return np.concatenate([np.ones((len(frames), 1)), difference[:, 1:] / np.maximum(running, 1e-12)], axis=1)


def _first_dip(dips: np.ndarray) -> np.ndarray:
    """The bottom of the first dip of each row that is about as deep as its deepest."""
    deep = dips < dips.min(1, keepdims=True) + NEARLY
    columns = np.arange(dips.shape[1])
    rising = np.pad(np.diff(dips, axis=1) >= 0, ((0, 0), (0, 1)), constant_values=True)
    return (rising & (columns >= deep.argmax(1)[:, None])).argmax(1)


def _parabola(dips: np.ndarray, best: np.ndarray) -> np.ndarray:
    """How far from `best` [T] the lowest point of the parabola through its neighbours lies, in lags."""
    rows = np.arange(len(dips))
    before, here, after = dips[rows, best - 1], dips[rows, best], dips[rows, best + 1]
    bend = before - 2 * here + after
    return np.where(bend > 1e-12, np.clip((before - after) / (2 * np.maximum(bend, 1e-12)), -0.5, 0.5), 0.0)


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x).mean()))
