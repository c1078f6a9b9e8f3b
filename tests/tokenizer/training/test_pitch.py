"""The pitch that the autocorrelation finds, and the losses of a decoder's voice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tokenizer.training.conftest import quick, records
from tokenizer import Codec, InputError
from tokenizer.network.harmonic import HarmonicHead, Voice
from tokenizer.training.config import TrainingConfig
from tokenizer.training.corpus import Corpus
from tokenizer.training.pitch import PitchLoss
from tokenizer.training.train import train

HOP, FRAMES = 320, 50


def hum(hertz: float, noise: float = 0.0) -> torch.Tensor:
    """[1, S] of ten harmonics, softer the higher."""
    rng = np.random.default_rng(0)
    t = np.arange(HOP * FRAMES) / 16000
    wave = sum(0.05 / k * np.sin(2 * np.pi * k * hertz * t + k) for k in range(1, 11))
    return torch.from_numpy(wave + noise * rng.normal(size=len(t))).float()[None]


@pytest.mark.parametrize("hertz", [80.0, 143.0, 260.0, 410.0])
def test_pitch_of_a_hum(hertz: float) -> None:
    pitch, weight = PitchLoss(HOP, 640).found(hum(hertz, 0.001))
    assert weight[0, 3:-4].min() > 0.9
    np.testing.assert_allclose(pitch[0, 3:-4] * 50, hertz, rtol=0.01)


def test_noise_and_silence_have_none() -> None:
    loss = PitchLoss(HOP, 640)
    assert loss.found(0.1 * torch.randn(1, HOP * FRAMES))[1].mean() < 0.05
    half = torch.cat([hum(120)[:, : HOP * 25], torch.zeros(1, HOP * 25)], 1)
    weight = loss.found(half)[1][0]
    assert weight[3:20].min() > 0.9 and not weight[-15:].any()


def test_losses_are_nothing_for_the_right_voice_and_tell_what_is_wrong() -> None:
    loss, target = PitchLoss(HOP, 640), hum(150)
    right = Voice(torch.full((1, FRAMES), 3.0), torch.full((1, FRAMES), 20.0))
    same = loss(right, target, target)
    assert same["pitch"] < 0.02 and same["voicing"] < 0.5 and same["periodicity"] < 0.01
    octave = loss(right._replace(pitch=right.pitch * 2), target, target)
    assert octave["pitch"] == pytest.approx(1, abs=0.05)
    shaking = right.pitch * (1 + 0.03 * (-1) ** torch.arange(FRAMES))
    assert loss(right._replace(pitch=shaking), target, target)["pitch"] > 0.15
    wave = (0.05 * torch.randn_like(target)).requires_grad_()
    rough = loss(right, wave, target)["periodicity"]
    assert rough > 0.5
    rough.backward()
    assert torch.isfinite(wave.grad).all() and wave.grad.any()
    assert loss(right._replace(voicing=-right.voicing), target, target)["voicing"] > 10


def test_a_codec_without_a_source_of_harmonics_gets_one_and_learns_its_voice(tiny_codec: Codec, tmp_path: Path) -> None:
    plain = replace(tiny_codec.config, decoder=replace(tiny_codec.config.decoder, head="istft"))
    torch.manual_seed(0)
    initial = Codec(plain)
    humming = replace(plain, decoder=replace(plain.decoder, head="harmonic"))
    losses = {"multi_mel": 1.0, "pitch": 5.0, "voicing": 5.0, "periodicity": 1.0}
    settings = quick("end_to_end", steps=40, losses=losses, learning_rate=5e-3)
    config = TrainingConfig(humming, None, {"end_to_end": settings})
    hums = np.concatenate([hum(hertz).numpy()[0] for hertz in (110, 220, 150)])
    corpus = Corpus(np.round(hums * 32767).astype("<i2"), np.cumsum([HOP * FRAMES] * 3), ("",) * 3)
    codec, _ = train(config, corpus, None, tmp_path, initial=initial)
    assert isinstance(codec.decoder.head, HarmonicHead)
    rows = records(tmp_path / "end_to_end")
    assert rows[-1]["voicing"] < 0.5 * rows[0]["voicing"] and rows[-1]["pitch"] < rows[0]["pitch"]
    other = replace(humming, decoder=replace(humming.decoder, head="linear"))
    with pytest.raises(InputError, match=r"they differ in decoder_config\.head"):
        train(TrainingConfig(other, None, {"end_to_end": settings}), corpus, None, tmp_path / "other", initial=initial)
