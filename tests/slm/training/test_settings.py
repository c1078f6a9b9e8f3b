"""Configurations and the command `train-lm`."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import slm.training.train
from slm.cli import main
from slm.model.transformer import LanguageModel
from slm.training.settings import read_settings
from slm.training.train import train
from tokenizer.errors import InputError
from tokenizer.parsed import values_of_pairs


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("tiny", 837984), ("small", 3_372_480), ("25m", 25_707_008), ("100m", 108_571_968), ("350m", 318_582_720)],
)
def test_shipped_configs_load_and_have_the_size_they_say(name, parameters):
    config, settings = read_settings(name, {})
    with torch.device("meta"):
        model = LanguageModel(config, 4096 + 16)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert settings.row_tokens >= config.context


def test_the_wsd_schedule_is_level_until_its_decay(lm_settings):
    settings = dataclasses.replace(lm_settings, schedule="wsd", steps=40, decay_fraction=0.25)
    rates = [settings.rate_at(step) for step in range(41)]
    assert rates[:3] == [pytest.approx(1e-2 * (step + 1) / 3) for step in range(3)]
    assert len(set(rates[3:31])) == 1 and rates[3] == pytest.approx(1e-2)
    assert rates[31] == pytest.approx(1e-3 + 9e-3 * (1 - math.sqrt(0.1)))  # arXiv 2405.18392: one minus a square root
    assert rates[40] == pytest.approx(1e-3) and sorted(rates[30:], reverse=True) == rates[30:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"learning_rat": 1.0}}, r"c\.yaml: train: unknown key 'learning_rat'"),
        ({"model": {"depth": 3}}, r"c\.yaml: model: unknown key 'depth'"),
        ({"extra": {}}, "exactly the sections 'model' and 'train', found .*'extra'"),
        ({"train": {"steps": "many"}}, r"c\.yaml: train: steps is 'many', expected int"),
        ({"train": {"warmup_steps": 5000}}, r"c\.yaml: train\.warmup_steps 5000 must be less than train\.steps"),
        ({"train": {"rows_at_once": 3}}, r"train\.rows 8 must be a multiple of train\.rows_at_once 3"),
        ({"model": {"heads": 7}}, r"c\.yaml: model\.width 96 is not a multiple of model\.heads 7"),
    ],
)
def test_bad_configs_are_refused_by_key_and_file(change, message, tmp_path):
    raw = yaml.safe_load((Path(slm.training.train.__file__).parents[2] / "configs" / "lm" / "tiny.yaml").read_text())
    for section, values in change.items():
        raw.setdefault(section, {}).update(values)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(InputError, match=message):
        read_settings(str(tmp_path / "c.yaml"), {})


def tiny_text() -> str:
    return (Path(slm.training.train.__file__).parents[2] / "configs" / "lm" / "tiny.yaml").read_text()


def test_numbers_with_exponents_are_numbers(tmp_path):
    text = re.sub(r"learning_rate: .*", "learning_rate: 1e-3", tiny_text(), count=1)
    text = re.sub(r"\bsteps: .*", "steps: 5e5", text, count=1)
    text = re.sub(r"rope_theta: .*", "rope_theta: 5e5", text)
    (tmp_path / "c.yaml").write_text(text.replace("context:", "norm_eps: 1e-05\n  context:"))
    model, settings = read_settings(str(tmp_path / "c.yaml"), {}, values_of_pairs(["dropout=1e-1"], "--model", "a=b"))
    assert (settings.learning_rate, settings.steps) == (1e-3, 500_000) and isinstance(settings.steps, int)
    assert (model.norm_eps, model.rope_theta, model.dropout) == (1e-5, 5e5, 0.1)


def test_a_missing_and_a_doubled_key_are_named_with_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(re.sub(r" *weight_decay: .*\n", "", tiny_text()))
    with pytest.raises(InputError, match=r"^\S*c\.yaml: train: the key 'weight_decay' is missing; expected float$"):
        read_settings(str(path), {})
    path.write_text(tiny_text().replace("train:", "train:\n  steps: 7"))
    with pytest.raises(InputError, match=r"^\S*c\.yaml: line \d+: the key 'steps' is there twice; remove one$"):
        read_settings(str(path), {})


def test_layers_are_compiled_on_cuda_unless_told_otherwise(lm_settings):
    found = [lm_settings.compiles_on(device) for device in ("cpu", "cuda", "cuda:3")]
    assert found == [False, True, True]
    assert dataclasses.replace(lm_settings, compile=True).compiles_on("cpu")
    assert not dataclasses.replace(lm_settings, compile=False).compiles_on("cuda")
    with pytest.raises(InputError, match=r"train\.compile is 'often'; expected true, false, auto or whole"):
        dataclasses.replace(lm_settings, compile="often")
    assert dataclasses.replace(lm_settings, compile="whole").compiles_on("cpu")
    with pytest.raises(InputError, match=r"train\.compile is whole, but with train\.parallel fsdp"):
        dataclasses.replace(lm_settings, compile="whole", parallel="fsdp")


def test_rows_shorter_than_the_context_are_refused(lm_config, lm_settings, token_dataset, tmp_path):
    short = dataclasses.replace(lm_settings, row_tokens=32)
    with pytest.raises(InputError, match=r"row_tokens is 32, model\.context 48: .* --model context=32"):
        train(lm_config, short, [token_dataset], tmp_path / "run", show_progress=False)
    assert not (tmp_path / "run").exists()


def test_the_command_trains_overrides_and_reports(token_dataset, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["train-lm", "--config", "tiny", "--data", str(token_dataset), "--out", str(out), "--json"]
    short = ["--steps", "4", "--warmup-steps", "1", "--rows", "2", "--rows-at-once", "2", "--no-bfloat16"]
    assert main([*command, *short]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["step"], report["stopped_by"], report["best_step"]) == (4, "end", 4)
    assert json.loads((out / "run.json").read_text())["train"]["bfloat16"] is False
    assert main([*command, *short]) == 2
    assert "pass --resume" in capsys.readouterr().err
    assert main([*command, *short, "--device", "gramophone"]) == 2
    assert "device 'gramophone' cannot be used" in capsys.readouterr().err
    assert main(["train-lm", "--config", "nosuch", "--data", "x", "--out", str(tmp_path / "y")]) == 2
    assert "config 'nosuch': no such file" in capsys.readouterr().err
    changed = ["--model", "head_groups=2", "tied_embeddings=false", "--out", str(tmp_path / "bits")]
    assert main([*command, *short, *changed, "--schedule", "wsd"]) == 0
    recorded = json.loads((tmp_path / "bits" / "run.json").read_text())
    assert (recorded["model"]["head_groups"], recorded["train"]["schedule"]) == (2, "wsd")
    assert main([*command, *short, "--model", "heads"]) == 2
    assert "--model heads: expected KEY=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize(("first_samples", "hint"), [(1, "use it with `focalstream continue"), (400, "does not: use")])
def test_the_closing_hint_names_what_works(token_dataset, tmp_path, capsys, first_samples, hint):
    data = tmp_path / "data"
    shutil.copytree(token_dataset, data)
    description = json.loads((data / "dataset.json").read_text())
    description["codec"]["first_samples"] = first_samples
    (data / "dataset.json").write_text(json.dumps(description))
    command = ["train-lm", "--config", "tiny", "--data", str(data), "--out", str(tmp_path / "run"), "--no-bfloat16"]
    assert main([*command, "--steps", "2", "--warmup-steps", "1", "--rows", "2", "--rows-at-once", "2"]) == 0
    assert hint in capsys.readouterr().out.splitlines()[-1]
