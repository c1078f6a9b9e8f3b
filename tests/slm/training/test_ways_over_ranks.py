"""Muon, adapters and preferences over two processes, with replicas and with shards: the losses of one process."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from slm.checkpoint import load_lm
from slm.training.preferences.records import write_preferences
from slm.training.preferences.training import train_on_preferences
from slm.training.train import train
from tests.rank_processes import together
from tests.slm.conftest import MODEL, SETTINGS
from tests.slm.training.test_preferences import toy
from tests.slm.training.test_train import log_of
from tokenizer.runs.ranks import Ranks, join_ranks

CONFIG = dataclasses.replace(MODEL, dropout=0.0)  # processes draw dropout for themselves
SHORT = dataclasses.replace(SETTINGS, steps=4, warmup_steps=1, validate_every=4, validation_rows=3, save_every=4)
RUNS = {
    "muon-ddp": dataclasses.replace(SHORT, optimizer="muon"),
    "muon-fsdp": dataclasses.replace(SHORT, optimizer="muon", parallel="fsdp"),
    "lora-fsdp": dataclasses.replace(SHORT, lora=3, parallel="fsdp"),
    "preferences-ddp": dataclasses.replace(SHORT, learning_rate=2e-3),
    "preferences-fsdp": dataclasses.replace(SHORT, learning_rate=2e-3, parallel="fsdp"),
    "preferences-lora-fsdp": dataclasses.replace(SHORT, learning_rate=2e-2, lora=3, parallel="fsdp"),
}
QUICK = ["muon-fsdp", "preferences-lora-fsdp"]
NAMES = {"quick": QUICK, "others": [name for name in RUNS if name not in QUICK]}


def run(name: str, token_dataset: Path, out: Path, place: Path, ranks: Ranks, **changes) -> None:
    settings = dataclasses.replace(RUNS[name], **changes)
    options = {"init_from": str(out / "base"), "show_progress": False, "ranks": ranks}
    if name.startswith("preferences"):
        train_on_preferences(CONFIG, settings, out / "pairs.jsonl", out=place / name, **options)
    else:
        train(CONFIG, settings, [token_dataset], place / name, **options)


def process(names: list[str], token_dataset: Path, out: Path) -> None:
    with join_ranks("cpu") as (ranks, _):
        for name in names:
            run(name, token_dataset, out, out / "two", ranks)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["quick", pytest.param("others", marks=pytest.mark.soak)])
def test_two_processes_have_the_losses_of_one(token_dataset, tiny_lm_dir, tmp_path, what):
    (tmp_path / "base").symlink_to(tiny_lm_dir)
    write_preferences(tmp_path / "pairs.jsonl", toy(), load_lm(tiny_lm_dir)[1])
    together(process, NAMES[what], token_dataset, tmp_path)
    for name in NAMES[what]:
        run(name, token_dataset, tmp_path, tmp_path / "one", Ranks(), parallel="ddp")
        found, expected = log_of(tmp_path / "two" / name), log_of(tmp_path / "one" / name)
        assert len(found) == len(expected) == 4
        keys = [key for key in expected[-1] if "bits_per_token" in key or "loss" in key or key == "gradient_norm"]
        assert len(keys) >= 3
        # float32 sums in another order; Muon's iterations are in bfloat16.
        tolerance = 5e-3 if name.startswith("muon") else 2e-4
        for key in keys:
            values = ([line[key] for line in log if key in line] for log in (found, expected))
            np.testing.assert_allclose(*values, rtol=tolerance, err_msg=f"{name} {key}")
        weights = [load_lm(tmp_path / where / name / "step-000004")[0].state_dict() for where in ("two", "one")]
        torch.testing.assert_close(*weights, atol=2e-3, rtol=1e-3)  # the learning rate is 1e-2
