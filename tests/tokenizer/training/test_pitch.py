"""The pitch that the autocorrelation finds, and the losses of a decoder's voice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tokenizer.training.conftest import quick, records
from tokenizer import Codec, InputError
from tokenizer.network.comb import CombHead, Voice
from tokenizer.training.config import TrainingConfig
from tokenizer.training.corpus import Corpus
from tokenizer.training.losses.pitch import LOSSES, PitchLosses
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
    pitch, weight = PitchLosses(set(LOSSES), HOP).found(hum(hertz, 0.001))
    assert weight[0, 3:-4].min() > 0.9
    np.testing.assert_allclose(pitch[0, 3:-4] * 50, hertz, rtol=0.01)


def test_a_frame_has_the_pitch_at_the_end_of_its_first_hop() -> None:
    glide = torch.cat([hum(100)[:, : HOP * 25], hum(200)[:, : HOP * 25]], 1)
    pitch, _ = PitchLosses(set(LOSSES), HOP).found(glide)
    end = torch.arange(FRAMES) + 1
    inside = (end > 2) & (end < FRAMES - 2) & ((end - 25).abs() > 2)
    np.testing.assert_allclose(pitch[0, inside], torch.where(end[inside] < 25, 2.0, 4.0), rtol=0.02)


def test_pitch_at_another_rate() -> None:
    t = np.arange(480 * FRAMES) / 24000
    wave = torch.from_numpy(sum(0.1 * np.sin(2 * np.pi * k * 150 * t + k) for k in (1, 2, 3))).float()[None]
    np.testing.assert_allclose(PitchLosses(set(LOSSES), 480).found(wave)[0][0, 3:-4], 3, rtol=0.01)


def test_noise_and_silence_have_none() -> None:
    loss = PitchLosses(set(LOSSES), HOP)
    assert loss.found(0.1 * torch.randn(1, HOP * FRAMES))[1].mean() < 0.05
    half = torch.cat([hum(120)[:, : HOP * 25], torch.zeros(1, HOP * 25)], 1)
    weight = loss.found(half)[1][0]
    assert weight[3:20].min() > 0.9 and not weight[-15:].any()


def test_losses_are_nothing_for_the_right_voice_and_tell_what_is_wrong() -> None:
    loss, target = PitchLosses(set(LOSSES), HOP), hum(150)
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
    assert set(PitchLosses({"pitch", "multi_mel"}, HOP)(right, target, target)) == {"pitch"}


def test_a_codec_without_a_comb_filter_gets_one_and_learns_its_voice(tiny_codec: Codec, tmp_path: Path) -> None:
    plain = replace(tiny_codec.config, decoder=replace(tiny_codec.config.decoder, head="istft"))
    torch.manual_seed(0)
    initial = Codec(plain)
    humming = replace(plain, decoder=replace(plain.decoder, head="comb"))
    losses = {"multi_mel": 1.0, "pitch": 5.0, "voicing": 5.0, "periodicity": 1.0}
    settings = quick("end_to_end", steps=40, losses=losses, learning_rate=5e-3)
    config = TrainingConfig(humming, None, {"end_to_end": settings})
    hums = np.concatenate([hum(hertz).numpy()[0] for hertz in (110, 220, 150)])
    corpus = Corpus(np.round(hums * 32767).astype("<i2"), np.cumsum([HOP * FRAMES] * 3), ("",) * 3)
    codec, _ = train(config, corpus, None, tmp_path, initial=initial)
    assert isinstance(codec.decoder.head, CombHead)
    rows = records(tmp_path / "end_to_end")
    assert rows[-1]["voicing"] < 0.5 * rows[0]["voicing"] and rows[-1]["pitch"] < rows[0]["pitch"]
    with pytest.raises(InputError, match="pitch, voicing, periodicity: of a codec whose"):
        train(TrainingConfig(plain, None, {"end_to_end": settings}), corpus, None, tmp_path / "plain")
    other = replace(humming, decoder=replace(humming.decoder, head="linear"))
    settings = replace(settings, losses={"multi_mel": 1.0})
    with pytest.raises(InputError, match=r"they differ in decoder_config\.head"):
        train(TrainingConfig(other, None, {"end_to_end": settings}), corpus, None, tmp_path / "other", initial=initial)
