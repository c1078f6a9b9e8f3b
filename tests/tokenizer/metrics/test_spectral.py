"""Spectral distances: nothing between equal waves, and the known distance between a wave and a quieter one."""

from __future__ import annotations

import numpy as np
import pytest

from tokenizer.metrics.spectral import magnitudes, mel_distance, stft_distance


@pytest.fixture
def noise() -> np.ndarray:
    """Loud enough that no bin comes near the floor of -100 dB."""
    return np.random.default_rng(0).normal(0, 0.3, 32_000).astype(np.float32)


def test_equal_waves_have_no_distance(noise: np.ndarray) -> None:
    assert mel_distance(noise, noise) == 0 and stft_distance(noise, noise) == 0
    assert mel_distance(noise, noise[:30_000]) == 0


def test_half_as_loud_is_6_db(noise: np.ndarray) -> None:
    assert mel_distance(noise, noise / 2) == pytest.approx(20 * np.log10(2), rel=1e-4)
    # half of the magnitude is missing (convergence), and ln 2 of the logarithm
    assert stft_distance(noise, noise / 2) == pytest.approx(0.5 + np.log(2), rel=1e-4)


def test_more_noise_is_further_away(noise: np.ndarray) -> None:
    other = np.random.default_rng(1).normal(0, 1, len(noise)).astype(np.float32)
    for distance in (mel_distance, stft_distance):
        assert 0 < distance(noise, noise + 0.01 * other) < distance(noise, noise + 0.1 * other)


def test_a_full_scale_sine_has_magnitude_1() -> None:
    sine = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    assert magnitudes(sine, 1024)[20:-20].max() == pytest.approx(1, abs=1e-3)
