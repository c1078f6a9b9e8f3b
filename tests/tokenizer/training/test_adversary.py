"""The discriminators of spectra: what they hear, and that the game with them can be played and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tokenizer.training.conftest import make_corpus, quick, records
from tokenizer import Codec, InputError
from tokenizer.training.adversary import Adversary
from tokenizer.training.batches import Crops, Rates
from tokenizer.training.config import StageConfig
from tokenizer.training.loop import run_stage
from tokenizer.training.stages import Outcome

RATES = Rates(16000, 16000, 1280)


def test_the_discriminators_learn_to_tell_noise_from_tones_and_then_tell_the_codec_how_to_change() -> None:
    torch.manual_seed(0)
    adversary = Adversary(width=0.5, kind="spectra")
    t = torch.arange(8000) / 16000
    real = torch.stack([torch.sin(2 * torch.pi * f * t) for f in (200.0, 500.0)]) * 0.3
    made = (torch.randn(2, 8000) * 0.2).requires_grad_(True)
    outcome = Outcome({}, made, real)
    optimizer = torch.optim.Adam(adversary.parameters(), 3e-3)
    first = float(adversary.discrimination(outcome).detach())
    for _ in range(30):
        optimizer.zero_grad()
        loss = adversary.discrimination(outcome)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5 * first
    assert made.grad is None  # the discriminators' loss has no gradient for the codec
    losses = adversary.losses(outcome)
    (losses["adversarial"] + losses["feature_matching"]).backward()
    assert made.grad is not None and float(made.grad.abs().sum()) > 0
    assert float(adversary.losses(Outcome({}, real, real))["feature_matching"]) == 0


def test_they_hear_a_part_of_each_row_the_same_of_made_and_real() -> None:
    torch.manual_seed(0)
    adversary = Adversary(width=0.5, kind="spectra", samples=2000)
    wave = torch.randn(2, 16000)
    for _ in range(3):
        assert float(adversary.losses(Outcome({}, wave, wave))["feature_matching"]) == 0
    assert all(judgement[-1].shape[-1] < 40 for judgement in adversary(wave[:, :2000]))
    short = torch.randn(2, 1500)  # rows that are shorter than the part are heard whole
    assert float(adversary.losses(Outcome({}, short, short))["feature_matching"]) == 0


def test_a_run_with_them_goes_on_to_the_last_bit(tiny_codec: Codec, tmp_path: Path) -> None:
    losses = {"multi_mel": 1.0, "adversarial": 0.1, "feature_matching": 1.0}
    shape = {"adversary": "spectra", "adversary_width": 0.25, "adversary_seconds": 0.1, "save_every": 2}
    crops = Crops(make_corpus(), RATES, 1280 * 6, 2, seed=0)

    def run(steps: int, out: Path) -> None:
        torch.manual_seed(4)
        codec = Codec(tiny_codec.config)
        codec.load_state_dict(tiny_codec.state_dict())
        config = quick("end_to_end", steps=steps, losses=losses, schedule="cosine", learning_rate=1e-3, **shape)
        config = StageConfig(**{**vars(config), "final_learning_rate": 1e-3})
        torch.manual_seed(5)
        run_stage("end_to_end", config, codec.train(), None, crops, None, out)

    run(5, tmp_path / "whole")
    run(3, tmp_path / "parts")
    run(5, tmp_path / "parts")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert {"adversarial", "feature_matching", "contest"} <= set(records(tmp_path / "whole")[0])


def test_a_kind_that_does_not_exist_is_named() -> None:
    with pytest.raises(InputError, match="adversary 'sounds' is unknown; use one of waves, spectra"):
        StageConfig(steps=1, adversary="sounds")
