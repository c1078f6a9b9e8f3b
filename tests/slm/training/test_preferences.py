"""Preferences: their file, the loss against its definition, a margin that grows, and an exact resume."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import slm.training.loop
from slm.checkpoint import load_lm
from slm.cli import main
from slm.training.preferences import training
from slm.training.preferences.dpo import PairBatches, PreferenceLoss, log_likelihoods
from slm.training.preferences.records import Preference, fingerprint_of, read_preferences, write_preferences
from slm.training.preferences.training import train_on_preferences
from tests.slm.training.test_train import log_of, weights_of
from tokenizer.errors import InputError
from tokenizer.runs.ranks import Ranks


def toy(count: int = 24) -> list[Preference]:
    """What is chosen has tokens of one set, what is rejected those of another."""
    random = np.random.default_rng(5)
    found = []
    for _ in range(count):
        length = int(random.integers(8, 20))
        chosen, rejected = random.integers(40, 48, length), random.integers(90, 98, length - 2)
        found.append(Preference(random.integers(0, 256, 6), chosen, rejected, True, False))
    return found


@pytest.fixture
def pairs_file(tiny_lm_dir, tmp_path):
    path = tmp_path / "pairs.jsonl"
    write_preferences(path, toy(), load_lm(tiny_lm_dir)[1])
    return path


@pytest.fixture
def settings(lm_settings):
    """12 steps of 4 pairs, a checkpoint every 6."""
    return dataclasses.replace(lm_settings, steps=12, save_every=6, validate_every=6, keep_checkpoints=9)


def test_a_file_reads_back_and_what_is_wrong_in_it_is_named(pairs_file, tiny_lm_dir):
    vocabulary = load_lm(tiny_lm_dir)[1]
    read = read_preferences(pairs_file, vocabulary)
    assert fingerprint_of(read) == fingerprint_of(toy()) != fingerprint_of(read[1:])
    good = json.loads(pairs_file.read_text().splitlines()[0])
    for change, message in [
        ({"codec_fingerprint": "ab" * 32}, "is of another codec"),
        ({"chosen": [3, 256]}, "chosen has tokens from 3 to 256; expected 0 to 255"),
        ({"prompt": [[1], [2]]}, "prompt is no list of tokens"),
        ({"rejected": [1.5]}, "rejected is no list of tokens"),
        ({"rejected": []}, "a continuation is empty and does not end"),
        ({"rejected": good["chosen"], "rejected_ends": True}, "chosen and rejected are the same"),
    ]:
        pairs_file.write_text(json.dumps(good) + "\n" + json.dumps(good | change) + "\n")
        with pytest.raises(InputError, match=f"line 2: {message}"):
            read_preferences(pairs_file, vocabulary)
    pairs_file.write_text("")
    with pytest.raises(InputError, match="holds no preferences; write some with `focalstream sample-pairs`"):
        read_preferences(pairs_file, vocabulary)


def test_the_loss_is_that_of_the_paper(tiny_lm_dir):
    """Against pairs one by one, without padding, in float64."""
    model, _ = load_lm(tiny_lm_dir)
    model.double()
    preferences = toy(6)

    def likelihood(ids: np.ndarray, prompt: int) -> torch.Tensor:
        logits = model(torch.from_numpy(ids)[None, :-1])[0, prompt:]
        return -F.cross_entropy(logits, torch.from_numpy(ids[prompt + 1 :]), reduction="sum")

    expected = np.array([[likelihood(ids, 6).item() for ids in one.ids()] for one in preferences])
    reference = log_likelihoods(model, preferences, 4, False, Ranks())
    np.testing.assert_allclose(reference, expected, rtol=1e-12)
    shifted = reference + np.random.default_rng(0).normal(0, 3, reference.shape)
    batch = PairBatches(preferences, shifted, 6, 1, Ranks()).pairs(range(6))
    loss, figures = PreferenceLoss(0.3).summed(model, batch, False)
    margins = 0.3 * ((expected - shifted) @ [1, -1])
    assert loss.item() == pytest.approx(np.log1p(np.exp(-margins)).sum(), rel=1e-10)
    assert figures["margin"].item() == pytest.approx(margins.sum(), rel=1e-10)
    assert figures["accuracy"].item() == (margins > 0).sum()


@pytest.mark.parametrize("lora", [0, 3])
def test_the_margin_grows_and_a_run_resumes_exactly(
    lm_config, settings, pairs_file, tiny_lm_dir, tmp_path, monkeypatch, lora
):
    settings = dataclasses.replace(settings, lora=lora, learning_rate=2e-2 if lora else 2e-3)
    calls = []
    real = training.log_likelihoods
    monkeypatch.setattr(training, "log_likelihoods", lambda *given: calls.append(1) or real(*given))
    options = {"init_from": str(tiny_lm_dir), "show_progress": False}
    report = train_on_preferences(lm_config, settings, pairs_file, out=tmp_path / "steady", **options)
    assert len(calls) == 1
    with monkeypatch.context() as patch:
        patch.setattr(slm.training.loop, "reason_to_stop", lambda progress, *_: "end" if progress.step >= 6 else "")
        train_on_preferences(lm_config, settings, pairs_file, out=tmp_path / "run", **options)
    train_on_preferences(lm_config, settings, pairs_file, out=tmp_path / "run", resume=True, **options)
    log = log_of(tmp_path / "steady")
    assert log_of(tmp_path / "run") == log
    assert weights_of(tmp_path / "run", 12) == weights_of(tmp_path / "steady", 12)
    # The first batch is under the reference itself; float32's rounding remains.
    assert abs(log[0]["margin"]) < 1e-4 and log[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert log[-1]["margin"] > 0.5 and log[-1]["accuracy"] == 1.0
    assert log[11]["held_out_margin"] > 0.5 and report.best_loss == log[11]["held_out_loss"] < 0.5
    assert json.loads((tmp_path / "run/best.json").read_text())["loss"] == report.best_loss
    load_lm(tmp_path / "run")


def test_other_pairs_or_another_start_are_not_resumed_on(lm_config, settings, pairs_file, tiny_lm_dir, tmp_path):
    options = {"init_from": str(tiny_lm_dir), "out": tmp_path / "run", "show_progress": False}
    settings = dataclasses.replace(settings, steps=6)
    train_on_preferences(lm_config, settings, pairs_file, **options)
    pairs_file.write_text("\n".join(pairs_file.read_text().splitlines()[1:]))
    with pytest.raises(InputError, match=r"began with another data\.preferences"):
        train_on_preferences(lm_config, settings, pairs_file, resume=True, **options)
    long = dataclasses.replace(settings, row_tokens=20, rows=4)
    with pytest.raises(InputError, match=r"preference \d+ has \d+ tokens with its prompt, but train\.row_tokens is 20"):
        train_on_preferences(lm_config, long, pairs_file, **options)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("", "name the model to start from, which is also the reference, with --init-from"),
        ("--init-from small --data x", "expected either --data DATASET ... or --preferences"),
        ("--init-from small --codec small", "--codec is of no use with --preferences"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, capsys, more, message):
    command = f"train-lm --config tiny --out {tmp_path / 'run'} --preferences {tmp_path / 'pairs.jsonl'} {more}"
    assert main(command.split()) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()
