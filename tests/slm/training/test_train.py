"""Training: exact resume, checkpoints that are whole or absent, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

import slm.training.train
from pipelines.dataset.batches import Batch
from pipelines.dataset.token_dataset import TokenDataset
from slm.checkpoint import load_lm, read_best
from slm.cli import main
from slm.documents.tasks import summed_loss, targets_of
from slm.model.cross_entropy import IGNORED
from slm.model.transformer import LanguageModel, ModelConfig
from slm.training.loaders import loaders
from slm.training.run_folder import RunFolder
from slm.training.settings import read_settings
from slm.training.train import train, validate
from slm.training.utilisation import flops_per_token, peak_flops
from slm.vocabulary import Vocabulary
from tokenizer.audio import read_audio
from tokenizer.errors import InputError
from tokenizer.runs.optimizers import Optimizers

TIMES = {"tokens_per_second", "utilisation"}  # the only thing in the log that two equal runs may differ in


def log_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def weights_of(run: Path, step: int) -> bytes:
    return (run / f"step-{step:06d}" / "model.safetensors").read_bytes()


def test_training_learns(tiny_lm_dir):
    log = log_of(tiny_lm_dir)
    assert [line["step"] for line in log] == list(range(1, 25))
    assert log[-1]["bits_per_token"] < log[0]["bits_per_token"] - 1
    assert log[-1]["held_out_bits_per_second"] == log[-1]["held_out_bits_per_token"] * 50


def test_a_stopped_and_resumed_run_has_the_losses_of_an_undisturbed_one(
    lm_config, lm_settings, token_dataset, tiny_lm_dir, tmp_path, monkeypatch
):
    """SIGTERM between two checkpoints, then again, then to the end: equal to the last bit, weights included."""
    real_step = slm.training.train.train_step
    for stop_at in (9, 17, None):

        def step_and_signal(*args, stop_at=stop_at):
            result = real_step(*args)
            if args[4] + 1 == stop_at:
                signal.raise_signal(signal.SIGTERM)
            return result

        monkeypatch.setattr(slm.training.train, "train_step", step_and_signal)
        before = signal.getsignal(signal.SIGTERM)
        report = train(
            lm_config, lm_settings, [token_dataset], tmp_path / "run", resume=stop_at != 9, show_progress=False
        )
        assert signal.getsignal(signal.SIGTERM) is before
        assert (report.stopped_by, report.step) == (("SIGTERM", stop_at) if stop_at else ("end", 24))
    assert log_of(tmp_path / "run") == log_of(tiny_lm_dir)
    assert weights_of(tmp_path / "run", 24) == weights_of(tiny_lm_dir, 24)
    assert (tmp_path / "run" / "best.json").read_text() == (tiny_lm_dir / "best.json").read_text()


def test_a_run_that_died_without_saving_repeats_the_lost_steps(
    lm_config, lm_settings, token_dataset, tiny_lm_dir, tmp_path, monkeypatch
):
    real_step = slm.training.train.train_step

    def step_and_die(*args):
        if args[4] + 1 == 15:
            raise RuntimeError("power cut")
        return real_step(*args)

    monkeypatch.setattr(slm.training.train, "train_step", step_and_die)
    with pytest.raises(RuntimeError, match="power cut"):
        train(lm_config, lm_settings, [token_dataset], tmp_path / "run", show_progress=False)
    (tmp_path / "run" / ".step-000014.123").mkdir()  # what a kill while saving leaves
    with open(tmp_path / "run" / "log.jsonl", "a") as log:
        log.write('{"step": 15, "bits_per')  # and a kill while logging
    monkeypatch.setattr(slm.training.train, "train_step", real_step)
    train(lm_config, lm_settings, [token_dataset], tmp_path / "run", resume=True, show_progress=False)
    assert log_of(tmp_path / "run") == log_of(tiny_lm_dir)
    assert not list((tmp_path / "run").glob(".step-*"))


def test_the_latest_checkpoints_and_the_best_are_kept(
    lm_config, lm_settings, token_dataset, tiny_lm_dir, tmp_path, monkeypatch
):
    bits = iter([3.0, 2.0, 2.5])
    monkeypatch.setattr(slm.training.train, "validate", lambda *_: next(bits))
    settings = dataclasses.replace(lm_settings, save_every=2)
    report = train(lm_config, settings, [token_dataset], tmp_path / "run", show_progress=False)
    folder = RunFolder(tmp_path / "run", keep=2)
    assert [path.name for path in folder.checkpoints()] == ["step-000016", "step-000022", "step-000024"]
    assert (report.best_step, report.best_bits_per_token, report.best_bits_per_second) == (16, 2.0, 100.0)
    best, _ = load_lm(tmp_path / "run")
    named, _ = load_lm(tmp_path / "run" / "step-000016")
    assert read_best(tmp_path / "run")["checkpoint"] == "step-000016"
    torch.testing.assert_close(best.state_dict(), named.state_dict(), rtol=0, atol=0)


def test_patience_ends_a_run(lm_config, lm_settings, token_dataset, tmp_path, monkeypatch):
    bits = iter([3.0, 2.0, 2.5, 2.1, 1.0])
    monkeypatch.setattr(slm.training.train, "validate", lambda *_: next(bits))
    settings = dataclasses.replace(lm_settings, validate_every=4, patience=2)
    report = train(lm_config, settings, [token_dataset], tmp_path / "run", show_progress=False)
    assert (report.stopped_by, report.step, report.best_step) == ("patience", 16, 8)


def test_smaller_forward_passes_give_the_same_gradient(lm_config, lm_settings, token_dataset):
    """In float64: the sum over passes is the loss of the whole step."""
    dataset = TokenDataset(token_dataset)
    vocabulary = Vocabulary(dataset.codebook_size, dataset.token_rate, "tiny", dataset.fingerprint)
    training = loaders(lm_settings, dataset, vocabulary, None).training
    norms = []
    for rows_at_once in (1, 2, 4):
        torch.manual_seed(0)
        model = LanguageModel(dataclasses.replace(lm_config, dropout=0.0), vocabulary.size).double()
        settings = dataclasses.replace(lm_settings, rows_at_once=rows_at_once)
        optimizer = Optimizers(model.named_parameters(), settings, 1e-3)
        norms.append(slm.training.train.train_step(model, optimizer, training.batch(5), settings, 5))
    # The loss is summed in float32, hence seven digits.
    np.testing.assert_allclose(norms[1:], [norms[0]] * 2, rtol=1e-6)


def test_nothing_is_learnt_across_documents():
    tokens = np.random.default_rng(0).integers(16, 40, (2, 9))
    documents = np.array([[4, 4, 4, 5, 5, 5, 5, 6, 6], [-1, -1, -1, 0, 0, 0, 0, 0, 1]])
    targets = targets_of(Batch(tokens, documents, np.zeros_like(tokens)))
    x = IGNORED
    expected = [
        [tokens[0, 1], tokens[0, 2], x, *tokens[0, 4:7], x, tokens[0, 8]],
        [x, x, x, *tokens[1, 4:8], x],
    ]
    assert targets.tolist() == [[int(value) for value in row] for row in expected]


def test_validation_counts_each_held_out_document_once(lm_config, lm_settings, token_dataset):
    """Against the documents one by one."""
    dataset = TokenDataset(token_dataset)
    vocabulary = Vocabulary(dataset.codebook_size, dataset.token_rate, "tiny", dataset.fingerprint)
    settings = dataclasses.replace(lm_settings, validation_rows=1000)
    validation = loaders(settings, dataset, vocabulary, dataset).validation["speech"]
    torch.manual_seed(1)
    # One layer and rows in which no document is cut, so that packing changes nothing at all.
    longest = int(dataset.lengths.sum() + 2 * len(dataset))
    model = LanguageModel(dataclasses.replace(lm_config, context=longest), vocabulary.size).double().eval()
    validation.row_tokens = longest
    nats, count = 0.0, 0
    for i in range(len(dataset)):
        ids = torch.tensor([1, *(dataset.codes(i).astype(int) + 16), 2])
        nats += F.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="sum").item()
        count += len(ids) - 1
    assert validate(model, validation, settings) == pytest.approx(nats / count / math.log(2), rel=1e-5)


def test_bfloat16_loss_is_near_the_exact_one(lm_config, lm_settings, token_dataset):
    dataset = TokenDataset(token_dataset)
    vocabulary = Vocabulary(dataset.codebook_size, dataset.token_rate, "tiny", dataset.fingerprint)
    training = loaders(lm_settings, dataset, vocabulary, None).training
    torch.manual_seed(1)
    model = LanguageModel(lm_config, vocabulary.size).eval()
    exact, rough = (summed_loss(model, training.batch(0), bfloat16).item() for bfloat16 in (False, True))
    assert exact != rough
    assert rough == pytest.approx(exact, rel=1e-3)  # bfloat16 has 8 bits; errors of 256 targets mostly cancel


def test_what_cannot_be_resumed_is_refused(lm_config, lm_settings, token_dataset, tiny_lm_dir, tmp_path):
    def again(out: Path, **changes: Any) -> None:
        train(
            lm_config,
            dataclasses.replace(lm_settings, **changes),
            [token_dataset],
            out,
            resume=True,
            show_progress=False,
        )

    with pytest.raises(InputError, match="holds a training run; pass --resume"):
        train(lm_config, lm_settings, [token_dataset], tiny_lm_dir, show_progress=False)
    with pytest.raises(InputError, match=r"began with another train\.rows, train\.seed"):
        again(tiny_lm_dir, rows=8, seed=9)
    with pytest.raises(InputError, match="holds no training run"):
        again(tmp_path / "new")
    with pytest.raises(InputError, match=r"began with another data\.held_out_cut_lengths"):
        train(lm_config, lm_settings, [token_dataset], tiny_lm_dir, held_out=[token_dataset], resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        again(tmp_path / "file")


def test_a_damaged_checkpoint_is_refused_on_resuming(lm_config, lm_settings, token_dataset, tmp_path):
    settings = dataclasses.replace(lm_settings, steps=8)
    train(lm_config, settings, [token_dataset], tmp_path, show_progress=False)
    (state,) = (tmp_path / "step-000008" / "optimizer").iterdir()
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(InputError, match="step-000008: cannot be resumed from"):
        train(lm_config, lm_settings, [token_dataset], tmp_path, resume=True, show_progress=False)


def test_other_codecs_are_refused(lm_settings, lm_config, token_dataset, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for part in ("shards", "index"):
        (other / part).symlink_to(token_dataset / part)
    description = json.loads((token_dataset / "dataset.json").read_text())
    description["codec"]["fingerprint"] = "0" * 64
    (other / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match="codes of another codec"):
        train(lm_config, lm_settings, [token_dataset], tmp_path / "run", held_out=[other], show_progress=False)


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


def test_utilisation_counts_each_product_once():
    config = ModelConfig(width=8, layers=3, heads=2, kv_heads=1, ffn_width=10, context=20)
    layer = 2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 10  # queries and output; keys and values; the feed-forward's three
    for row_tokens, span in ((12, 12), (50, 20)):
        expected = 6 * (3 * layer + 30 * 8) + 12 * 3 * 8 * span  # the tied table is a product in the head only
        assert flops_per_token(LanguageModel(config, 30), row_tokens) == expected
    peak, source = peak_flops("cpu", False)
    assert peak > 0 and source == "measured"


def test_the_wsd_schedule_is_level_until_its_decay(lm_settings):
    settings = dataclasses.replace(lm_settings, schedule="wsd", steps=40, decay_fraction=0.25)
    rates = [settings.rate_at(step) for step in range(41)]
    assert rates[:3] == [pytest.approx(1e-2 * (step + 1) / 3) for step in range(3)]
    assert len(set(rates[3:31])) == 1 and rates[3] == pytest.approx(1e-2)
    assert rates[31] == pytest.approx(1e-3 + 9e-3 * (1 - math.sqrt(0.1)))  # arXiv 2405.18392: one minus a square root
    assert rates[40] == pytest.approx(1e-3) and sorted(rates[30:], reverse=True) == rates[30:]


def test_muon_trains_the_matrices_of_the_layers_and_resumes_exactly(
    lm_config, lm_settings, token_dataset, tiny_lm_dir, tmp_path
):
    settings = dataclasses.replace(lm_settings, optimizer="muon", steps=10, validate_every=5, keep_checkpoints=9)
    train(lm_config, settings, [token_dataset], tmp_path / "steady", show_progress=False)
    train(lm_config, settings, [token_dataset], tmp_path / "stopped", show_progress=False)
    for late in RunFolder(tmp_path / "stopped", 9).checkpoints()[1:]:  # as if it had died after the first
        shutil.rmtree(late)
    train(lm_config, settings, [token_dataset], tmp_path / "stopped", resume=True, show_progress=False)
    assert log_of(tmp_path / "stopped") == log_of(tmp_path / "steady")
    assert weights_of(tmp_path / "stopped", 10) == weights_of(tmp_path / "steady", 10)
    assert log_of(tmp_path / "steady")[4]["bits_per_token"] != log_of(tiny_lm_dir)[4]["bits_per_token"]


def gradients(model: LanguageModel, batch: Batch) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)  # dropout
    model.zero_grad()
    summed_loss(model, batch, False).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def some_batch(lm_settings, token_dataset) -> tuple[Batch, Vocabulary]:
    dataset = TokenDataset(token_dataset)
    vocabulary = Vocabulary(dataset.codebook_size, dataset.token_rate, "tiny", dataset.fingerprint)
    return loaders(lm_settings, dataset, vocabulary, None).training.batch(0), vocabulary


def test_recomputing_layers_changes_no_gradient(lm_config, lm_settings, token_dataset):
    batch, vocabulary = some_batch(lm_settings, token_dataset)
    model = LanguageModel(lm_config, vocabulary.size).train()
    expected = gradients(model, batch)
    calls = []
    model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    model.recompute = True
    torch.testing.assert_close(gradients(model, batch), expected, rtol=0, atol=0)  # dropout's masks too
    assert len(calls) == 2


@pytest.mark.slow
def test_compiled_layers_give_the_same_gradients(lm_config, lm_settings, token_dataset):
    batch, vocabulary = some_batch(lm_settings, token_dataset)
    model = LanguageModel(dataclasses.replace(lm_config, dropout=0.0), vocabulary.size).train()
    expected = gradients(model, batch)
    model.layers[1].compile()
    torch.testing.assert_close(gradients(model, batch), expected, rtol=1e-3, atol=1e-4)  # float32, other orders of sums


def test_samples_are_codes_and_sound_of_held_out_speech(lm_config, lm_settings, token_dataset, tiny_codec, tmp_path):
    settings = dataclasses.replace(lm_settings, steps=4, sample_every=2, held_out_fraction=0.5)
    train(lm_config, settings, [token_dataset], tmp_path, show_progress=False, codec=tiny_codec)
    folders = sorted((tmp_path / "samples").iterdir())
    assert [folder.name for folder in folders] == ["step-000002", "step-000004"]
    for number in range(2):
        first, second = (np.load(folder / f"{number}.npy") for folder in folders)
        same = int((first[: len(second)] == second[: len(first)]).cumprod().sum())
        assert 5 < same < len(second) and second.min() >= 0 and second.max() < 256  # one prompt, other continuations
        assert (
            len(read_audio(folders[1] / f"{number}.wav", tiny_codec.sample_rate_out))
            == len(second) * tiny_codec.samples_per_token
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"learning_rat": 1.0}}, r"c\.yaml: train: unknown key 'learning_rat'"),
        ({"model": {"depth": 3}}, r"c\.yaml: model: unknown key 'depth'"),
        ({"extra": {}}, "exactly the sections 'model' and 'train'"),
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


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_kill_9_anywhere_then_resume_equals_an_undisturbed_run(token_dataset, tmp_path):
    short = "--steps 60 --warmup-steps 5 --save-every 4 --validate-every 7 --rows 2 --rows-at-once 1"

    def start(out: Path, *more: str) -> subprocess.Popen:
        command = f"-m slm.cli train-lm --config tiny --data {token_dataset} --out {out} {short}".split()
        return subprocess.Popen([sys.executable, *command, *more], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    assert start(tmp_path / "steady").wait() == 0
    delays, kills = random.Random(0), 0
    run = tmp_path / "killed"
    running = start(run)
    for lines in (6, 17, 29, 41):
        while running.poll() is None and count_lines(run / "log.jsonl") < lines:
            time.sleep(0.005)
        time.sleep(delays.uniform(0, 0.05))
        if running.poll() is None:  # a fast machine may have come to the end
            running.kill()
            kills += 1
        running.wait()
        running = start(run, "--resume")
    assert kills >= 2
    assert running.wait() == 0
    assert log_of(run) == log_of(tmp_path / "steady")
    assert weights_of(run, 60) == weights_of(tmp_path / "steady", 60)


def test_a_mixture_of_a_folder_and_a_url_resumes_exactly(lm_config, lm_settings, token_dataset, tmp_path, monkeypatch):
    fsspec.filesystem("memory").put(f"{token_dataset}/", "/mixture/", recursive=True)
    data = [f"{token_dataset}:3", "memory://mixture:1"]
    settings = dataclasses.replace(lm_settings, steps=8, save_every=4, validate_every=8)
    options: dict[str, Any] = {"show_progress": False, "cache": tmp_path / "cache"}
    train(lm_config, settings, data, tmp_path / "whole", **options)
    real_step = slm.training.train.train_step

    def step_and_signal(*args):
        if args[4] == 4:
            signal.raise_signal(signal.SIGTERM)
        return real_step(*args)

    monkeypatch.setattr(slm.training.train, "train_step", step_and_signal)
    assert train(lm_config, settings, data, tmp_path / "run", **options).step == 5
    monkeypatch.setattr(slm.training.train, "train_step", real_step)
    with pytest.raises(InputError, match=r"began with another data\.weights"):
        train(lm_config, settings, [f"{token_dataset}:1", data[1]], tmp_path / "run", resume=True, **options)
    train(lm_config, settings, data, tmp_path / "run", resume=True, **options)
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")
    assert weights_of(tmp_path / "run", 8) == weights_of(tmp_path / "whole", 8)


def test_a_mixture_holds_out_of_each_dataset_and_trains_on_the_rest(lm_settings, token_dataset):
    dataset = TokenDataset([token_dataset] * 2)
    vocabulary = Vocabulary(dataset.codebook_size, dataset.token_rate, "tiny", dataset.fingerprint)
    training, validation, *_ = loaders(lm_settings, dataset, vocabulary, None, (3.0, 1.0))
    assert training.tokens_per_epoch + validation["speech"].tokens_per_epoch == int((dataset.lengths + 2).sum())


def test_rows_longer_than_all_cuts_are_refused(lm_config, lm_settings, token_dataset, tmp_path):
    settings = dataclasses.replace(lm_settings, row_tokens=100_000)
    with pytest.raises(InputError, match=r"train\.row_tokens is 100000, but all cuts for training together have \d+"):
        train(lm_config, settings, [token_dataset], tmp_path / "run", show_progress=False)
