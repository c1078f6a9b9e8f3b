"""The pitch tracker on sounds whose pitch is known, and the errors between two of them."""

from __future__ import annotations

import numpy as np
import pytest

from tokenizer.metrics.pitch import pitch_errors, track


def buzz(hertz: float | np.ndarray, seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    """Twelve harmonics with a little noise: float32 [S] at 16 kHz."""
    samples = round(16_000 * seconds)
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(hertz, samples)) / 16_000
    wave = sum(np.sin(k * phase + k * k) / k for k in range(1, 13))
    return (0.2 * wave + np.random.default_rng(seed).normal(0, 0.003, samples)).astype(np.float32)


@pytest.mark.parametrize("hertz", [70.0, 110.3, 200.0, 333.3, 480.0])
def test_a_tone_has_its_pitch(hertz: float) -> None:
    sine = 0.3 * np.sin(2 * np.pi * hertz * np.arange(16_000) / 16_000).astype(np.float32)
    for wave in (buzz(hertz), sine):
        pitch = track(wave)
        assert pitch.shape == (100,) and (pitch > 0).mean() > 0.95  # the edges see too little of it
        np.testing.assert_allclose(pitch[5:-5], hertz, rtol=2e-3)


def test_a_glide_is_followed() -> None:
    hertz = np.linspace(100, 220, 32_000)
    pitch = track(buzz(hertz, 2.0))
    np.testing.assert_allclose(pitch[5:-5], hertz[::160][5:-5], rtol=0.03)  # a window of 30 ms lags a little


def test_noise_and_silence_have_none() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    assert not track(noise).any() and not track(np.zeros(4000, np.float32)).any()


def test_a_semitone_is_100_cents() -> None:
    errors = pitch_errors(buzz(200.0), buzz(200.0 * 2 ** (1 / 12), seed=1))
    assert errors.f0_rmse_cents == pytest.approx(100, abs=4)
    assert errors.f0_rmse_hz == pytest.approx(200 * (2 ** (1 / 12) - 1), abs=0.5)
    assert errors.voicing_error < 0.03
    same = pitch_errors(buzz(200.0), buzz(200.0))
    assert same == (0, 0, 0)


def test_half_unvoiced_is_half_wrong() -> None:
    wave = buzz(150.0)
    halved = np.where(np.arange(16_000) < 8000, wave, np.random.default_rng(3).normal(0, 0.1, 16_000))
    errors = pitch_errors(wave, halved.astype(np.float32))
    assert errors.voicing_error == pytest.approx(0.5, abs=0.05)
    assert errors.f0_rmse_cents is not None and errors.f0_rmse_cents < 20
    nothing = pitch_errors(wave, np.zeros_like(wave))
    assert nothing.f0_rmse_hz is None and nothing.f0_rmse_cents is None and nothing.voicing_error > 0.9
