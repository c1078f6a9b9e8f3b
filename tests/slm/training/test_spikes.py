"""Batches that are skipped: which, how many, and the same ones after a stop."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
from typing import Any

import numpy as np
import pytest
import torch

import slm.training.loop
import slm.training.steps
from slm.training.spikes import FEWEST, LATEST, Spikes
from slm.training.train import train
from tests.slm.training.test_train import log_of, weights_of
from tokenizer.errors import InputError


def steps_of(spikes: Spikes, losses: list[float], norm: float = 1.0) -> list[bool]:
    return [spikes.skips(step, loss, norm) for step, loss in enumerate(losses)]


@pytest.fixture
def noisy() -> list[float]:
    return np.random.default_rng(0).normal(6.0, 0.1, LATEST).tolist()


def test_a_spike_is_skipped_and_does_not_count_as_usual(lm_settings, noisy):
    spikes = Spikes(dataclasses.replace(lm_settings, skip_limit=9, skip_sigma=6.0))
    assert not any(steps_of(spikes, noisy))
    assert steps_of(spikes, [6.4, 7.0, 7.0, 6.4]) == [False, True, True, False]
    assert (spikes.skipped, len(spikes.losses)) == (2, LATEST) and max(spikes.losses) < 7
    assert spikes.skips(0, 6.0, 3.0)  # the gradient alone


def test_the_first_steps_and_a_fall_are_no_spikes(lm_settings):
    spikes = Spikes(dataclasses.replace(lm_settings, skip_limit=9, skip_sigma=6.0))
    assert not any(steps_of(spikes, [6.0] * (FEWEST - 1) + [9.0]))
    assert not any(steps_of(spikes, np.linspace(9, 2, LATEST).tolist()))


def test_without_a_sigma_only_what_is_not_finite_is_skipped_up_to_the_limit(lm_settings, noisy):
    spikes = Spikes(dataclasses.replace(lm_settings, skip_limit=2))
    assert steps_of(spikes, [*noisy, 60.0, math.nan, math.inf, 6.0])[-4:] == [False, True, True, False]
    with pytest.raises(InputError, match=r"step 8: the gradient is no longer finite .* 2 batches have been skipped"):
        spikes.skips(7, 6.0, math.inf)


def test_without_a_limit_the_first_ends_the_run(lm_settings, noisy):
    spikes = Spikes(dataclasses.replace(lm_settings, skip_sigma=6.0))
    assert not any(steps_of(spikes, [*noisy, 60.0]))
    with pytest.raises(InputError, match=r"step 1: the gradient is no longer finite .* --skip-limit 20 skips such"):
        spikes.skips(0, math.nan, 1.0)


@pytest.fixture
def broken_batches(monkeypatch):
    """The losses of steps 5 and 9 are not finite."""
    real, steps = slm.training.steps.summed_loss, []

    def loss(trainee: Any, batch: Any, bfloat16: bool) -> torch.Tensor:
        if trainee.training:
            steps.append(1)
        broken = trainee.training and (len(steps) + 1) // 2 in (5, 9)  # two passes a step
        return real(trainee, batch, bfloat16) * (math.nan if broken else 1.0)

    monkeypatch.setattr(slm.training.steps, "summed_loss", loss)
    return steps


def test_a_run_skips_counts_and_resumes_exactly(
    lm_config, lm_settings, token_dataset, tmp_path, broken_batches, monkeypatch, capsys
):
    settings = dataclasses.replace(lm_settings, steps=12, skip_limit=2, skip_sigma=6.0)
    report = train(lm_config, settings, [token_dataset], tmp_path / "steady")
    assert "step 5: batch skipped (loss nan, gradient norm nan), 1 of at most 2" in capsys.readouterr().err
    log = log_of(tmp_path / "steady")
    assert report.skipped == 2 and [line["step"] for line in log if "skipped" in line] == [5, 9]
    assert log[4]["bits_per_token"] is None and json.loads(json.dumps(log[4], allow_nan=False))
    broken_batches.clear()
    real_step = slm.training.loop.train_step

    def step_and_signal(*args: Any) -> Any:
        result = real_step(*args)
        if args[4] + 1 == 7:
            signal.raise_signal(signal.SIGTERM)
        return result

    for step, resume in ((step_and_signal, False), (real_step, True)):
        monkeypatch.setattr(slm.training.loop, "train_step", step)
        train(lm_config, settings, [token_dataset], tmp_path / "stopped", resume=resume, show_progress=False)
    progress = json.loads((tmp_path / "stopped/step-000012/progress.json").read_text())
    assert progress["skipped"] == 2 and len(progress["latest_losses"]) == 10
    assert log_of(tmp_path / "stopped") == log
    assert weights_of(tmp_path / "stopped", 12) == weights_of(tmp_path / "steady", 12)
    with pytest.raises(InputError, match="step 5: the gradient is no longer finite"):
        broken_batches.clear()
        train(lm_config, lm_settings, [token_dataset], tmp_path / "third", show_progress=False)
