"""Logging to Weights & Biases, with a stand-in for the package."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from typing import Any

import pytest
import torch

from slm.cli import main
from slm.training.train import train
from tokenizer.errors import InputError
from tokenizer.runs.monitor import Monitor


@pytest.fixture
def wandb(monkeypatch):
    """A module that notes what it is told."""
    told: dict[str, Any] = {"init": [], "log": [], "finished": 0}
    run = types.SimpleNamespace(
        log=told["log"].append,
        define_metric=lambda name, step_metric: told.update(metric=(name, step_metric)),
        finish=lambda: told.update(finished=told["finished"] + 1),
    )
    module = types.ModuleType("wandb")
    module.init = lambda **given: told["init"].append(given) or run  # type: ignore[attr-defined]
    module.Audio = lambda wave, sample_rate: (wave.shape, sample_rate)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return told


def test_steps_sounds_and_one_id(wandb, tmp_path):
    (tmp_path / "run.json").write_text('{"train": {"steps": 3}}')
    for step in (1, 2):
        with Monitor(tmp_path, "train", 0, 3, False, False, "team/speech") as monitor:
            monitor.step({"step": step, "loss": 0.5, "held_out": None}, "")
            monitor.hear(step, [torch.zeros(8)], 16000)
    assert wandb["log"][0] == {"step": 1, "loss": 0.5}
    assert wandb["log"][1] == {"step": 1, "held_out/0": ((8,), 16000)}
    assert wandb["finished"] == 2 and wandb["metric"] == ("*", "step")
    first, second = wandb["init"]
    assert first == second and first["id"] == json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert (first["entity"], first["project"], first["config"]) == ("team", "speech", {"train": {"steps": 3}})
    with Monitor(tmp_path, "train", 0, 3, True, False, "speech"):  # another rank
        assert len(wandb["init"]) == 2


def test_a_run_that_does_not_ask_does_not_use_it(wandb, tmp_path):
    with Monitor(tmp_path, "train", 0, 3, False, False):
        pass
    assert not wandb["init"] and not (tmp_path / "wandb.json").exists()


def test_what_fails_is_one_line(wandb, tmp_path, monkeypatch, capsys):
    def refuse(**_: Any) -> None:
        raise RuntimeError("api_key not configured\nmore")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(InputError, match=r"--wandb speech: api_key not configured; log in with `wandb login`"):
        Monitor(tmp_path, "train", 0, 3, False, False, "speech")
    monkeypatch.setattr("tokenizer.runs.weights_and_biases.importlib.util.find_spec", lambda name: None)
    command = f"train-lm --config tiny --data {tmp_path} --out {tmp_path / 'run'} --wandb speech"
    assert main(command.split()) == 2
    assert "needs wandb, which is not installed; pip install focalstream[wandb]" in capsys.readouterr().err


def test_a_training_run_logs_every_step(wandb, lm_config, lm_settings, token_dataset, tmp_path):
    settings = dataclasses.replace(lm_settings, steps=4, validate_every=4, save_every=4)
    train(lm_config, settings, [token_dataset], tmp_path / "run", show_progress=False, wandb="speech")
    assert [record["step"] for record in wandb["log"]] == [1, 2, 3, 4]
    assert "held_out_bits_per_token" in wandb["log"][-1] and wandb["init"][0]["config"]["train"]["steps"] == 4
