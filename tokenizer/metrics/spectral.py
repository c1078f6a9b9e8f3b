"""Distances of spectra: log-mel and multi-resolution STFT.

Legend: S samples, T frames, F frequency bins.
"""

from __future__ import annotations

import numpy as np

from tokenizer.metrics.intrusive import METRICS_RATE
from tokenizer.network.mel import mel_filterbank

MEL_WINDOW, MEL_BANDS = 1024, 80  # samples, bands from 0 to 8 kHz
STFT_WINDOWS = (2048, 1024, 512)  # samples, each with a hop of a quarter
FLOOR = 1e-5  # magnitude, -100 dB of a full-scale sine: differences below are inaudible


def mel_distance(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Mean absolute difference of log-mel magnitudes, in dB, over 80 bands and frames of 64 ms each 16 ms.

    Args:
        reference, degraded: float32 [S] at 16 kHz, aligned; the longer is cut to the shorter.
    """
    mels = mel_filterbank(METRICS_RATE, MEL_WINDOW, MEL_BANDS).numpy()
    logs = [_log10(magnitudes(wave, MEL_WINDOW) @ mels) for wave in _same_length(reference, degraded)]
    return float(20 * np.abs(logs[0] - logs[1]).mean())


def stft_distance(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Spectral convergence plus L1 of log magnitudes (nepers), the mean over three window lengths.

    That is the multi-resolution STFT loss of Parallel WaveGAN (arXiv 1910.11480, section 2.2); 0 for equal waves.

    Args:
        reference, degraded: float32 [S] at 16 kHz, aligned; the longer is cut to the shorter.
    """
    reference, degraded = _same_length(reference, degraded)
    total = 0.0
    for window in STFT_WINDOWS:
        wanted, got = magnitudes(reference, window), magnitudes(degraded, window)
        convergence = np.linalg.norm(wanted - got) / max(float(np.linalg.norm(wanted)), FLOOR)
        total += convergence + np.abs(_log10(wanted) - _log10(got)).mean() * np.log(10)
    return float(total / len(STFT_WINDOWS))


def magnitudes(wave: np.ndarray, window: int) -> np.ndarray:
    """[S] -> [T, window / 2 + 1], Hann window, hop of a quarter, scaled so that a full-scale sine is about 1."""
    taper = np.hanning(window + 1)[:-1]
    padded = np.pad(wave.astype(np.float64), window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[:: window // 4]
    return np.abs(np.fft.rfft(frames * taper)) * (2 / taper.sum())


def _log10(magnitude: np.ndarray) -> np.ndarray:
    return np.log10(np.maximum(magnitude, FLOOR))


def _same_length(reference: np.ndarray, degraded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    samples = min(len(reference), len(degraded))
    return reference[:samples], degraded[:samples]
