"""The measures: identical audio is at the top, noise lowers them, and what holds no speech is not measured."""

from __future__ import annotations

import numpy as np
import pytest

from tokenizer.metrics import speech_quality


def voice(seconds: float = 3.0) -> np.ndarray:
    """A buzz with moving formants and pauses, loud enough for all three measures: float32 [S] at 16 kHz."""
    t = np.arange(int(16000 * seconds)) / 16000
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(5 * t)) / 16000
    buzz = sum(np.sin(k * phase) / (1 + abs(k * 120 - 900 - 600 * np.sin(7 * t)) / 300) for k in range(1, 30))
    return (0.1 * buzz * (np.sin(9 * t) > -0.5)).astype(np.float32)


def test_noise_lowers_every_measure() -> None:
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    wave = voice()
    same = speech_quality(wave, wave)
    noisy = speech_quality(wave, wave + np.random.default_rng(0).normal(0, 0.1, len(wave)).astype(np.float32))
    assert same["stoi"] == pytest.approx(1, abs=1e-6) and same["pesq_wb"] > 4.5
    for measure, value in noisy.items():
        assert 0 < value < same[measure], measure


def test_a_clip_without_speech_has_no_figures() -> None:
    rng = np.random.default_rng(0)
    nothing = {"pesq_wb": None, "stoi": None, "estoi": None}
    hum = rng.normal(0, 1e-4, 48000).astype(np.float32)
    assert speech_quality(hum, hum) == nothing
    assert speech_quality(voice(0.4), voice(0.4)) == nothing


@pytest.mark.slow
def test_minutes_of_speech_are_measured() -> None:
    pytest.importorskip("pesq")
    minutes = np.tile(voice(10.0), 13)
    assert speech_quality(minutes, minutes)["pesq_wb"] > 4.5
