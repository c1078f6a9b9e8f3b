"""Training: exact resume, checkpoints that are whole or absent, and what is refused."""

from __future__ import annotations

import dataclasses
import json
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

import slm.training.loop
import slm.training.train
from pipelines.dataset.token_dataset import TokenDataset
from slm.checkpoint import checkpoints_of, load_lm, read_best
from slm.cli import main
from slm.training.loaders import loaders
from slm.training.train import train
from slm.vocabulary import Vocabulary
from tokenizer.audio import read_audio
from tokenizer.errors import InputError

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
    real_step = slm.training.loop.train_step
    for stop_at in (9, 17, None):

        def step_and_signal(*args, stop_at=stop_at):
            result = real_step(*args)
            if args[4] + 1 == stop_at:
                signal.raise_signal(signal.SIGTERM)
            return result

        monkeypatch.setattr(slm.training.loop, "train_step", step_and_signal)
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
    real_step = slm.training.loop.train_step

    def step_and_die(*args):
        if args[4] + 1 == 15:
            raise RuntimeError("power cut")
        return real_step(*args)

    monkeypatch.setattr(slm.training.loop, "train_step", step_and_die)
    with pytest.raises(RuntimeError, match="power cut"):
        train(lm_config, lm_settings, [token_dataset], tmp_path / "run", show_progress=False)
    (tmp_path / "run" / ".step-000014.123").mkdir()  # what a kill while saving leaves
    with open(tmp_path / "run" / "log.jsonl", "a") as log:
        log.write('{"step": 15, "bits_per')  # and a kill while logging
    monkeypatch.setattr(slm.training.loop, "train_step", real_step)
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
    assert [path.name for path in checkpoints_of(tmp_path / "run")] == ["step-000016", "step-000022", "step-000024"]
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


def test_time_ends_a_run_with_a_validation_and_a_low_learning_rate(
    lm_config, lm_settings, token_dataset, tmp_path, monkeypatch
):
    now = iter(range(1000))
    monkeypatch.setattr(slm.training.loop.time, "perf_counter", lambda: float(next(now)))
    settings = dataclasses.replace(lm_settings, steps=500, warmup_steps=0)
    report = train(lm_config, settings, [token_dataset], tmp_path / "lm", show_progress=False, seconds=20.0)
    log = log_of(tmp_path / "lm")
    assert report.stopped_by == "time" and 3 <= report.step == len(log) < 20
    assert "held_out_bits_per_token" in log[-1] and report.best_step is not None
    rates = [record["learning_rate"] for record in log]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.3 * rates[0]
    load_lm(tmp_path / "lm")


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


def test_muon_trains_the_matrices_of_the_layers_and_resumes_exactly(
    lm_config, lm_settings, token_dataset, tiny_lm_dir, tmp_path
):
    settings = dataclasses.replace(lm_settings, optimizer="muon", steps=10, validate_every=5, keep_checkpoints=9)
    train(lm_config, settings, [token_dataset], tmp_path / "steady", show_progress=False)
    train(lm_config, settings, [token_dataset], tmp_path / "stopped", show_progress=False)
    for late in checkpoints_of(tmp_path / "stopped")[1:]:  # as if it had died after the first
        shutil.rmtree(late)
    train(lm_config, settings, [token_dataset], tmp_path / "stopped", resume=True, show_progress=False)
    assert log_of(tmp_path / "stopped") == log_of(tmp_path / "steady")
    assert weights_of(tmp_path / "stopped", 10) == weights_of(tmp_path / "steady", 10)
    assert log_of(tmp_path / "steady")[4]["bits_per_token"] != log_of(tiny_lm_dir)[4]["bits_per_token"]


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


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_kill_9_anywhere_then_resume_equals_an_undisturbed_run(token_dataset, tmp_path, monkeypatch):
    """The run that nobody kills, and the end of the other, are in this process: one PyTorch less to load for each."""
    short = "--steps 40 --warmup-steps 5 --save-every 4 --validate-every 7 --rows 2 --rows-at-once 1"
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # of the other processes: sums in one order

    def words(out: Path) -> list[str]:
        return f"train-lm --config tiny --data {token_dataset} --out {out} {short}".split()

    def start(out: Path, *more: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "slm.cli", *words(out), *more]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    assert main(words(tmp_path / "steady")) == 0
    delays, kills = random.Random(0), 0
    run = tmp_path / "killed"
    running = start(run)
    for lines in (6, 17, 29):
        while running.poll() is None and count_lines(run / "log.jsonl") < lines:
            time.sleep(0.005)
        time.sleep(delays.uniform(0, 0.05))
        if running.poll() is None:  # a fast machine may have come to the end
            running.kill()
            kills += 1
        running.wait()
        if lines < 29:
            running = start(run, "--resume")
    assert kills >= 2
    assert main([*words(run), "--resume"]) == 0
    assert log_of(run) == log_of(tmp_path / "steady")
    assert weights_of(run, 40) == weights_of(tmp_path / "steady", 40)


def test_a_mixture_of_a_folder_and_a_url_resumes_exactly(lm_config, lm_settings, token_dataset, tmp_path, monkeypatch):
    fsspec.filesystem("memory").put(f"{token_dataset}/", "/mixture/", recursive=True)
    data = [f"{token_dataset}:3", "memory://mixture:1"]
    settings = dataclasses.replace(lm_settings, steps=8, save_every=4, validate_every=8)
    options: dict[str, Any] = {"show_progress": False, "cache": tmp_path / "cache"}
    train(lm_config, settings, data, tmp_path / "whole", **options)
    real_step = slm.training.loop.train_step

    def step_and_signal(*args):
        if args[4] == 4:
            signal.raise_signal(signal.SIGTERM)
        return real_step(*args)

    monkeypatch.setattr(slm.training.loop, "train_step", step_and_signal)
    assert train(lm_config, settings, data, tmp_path / "run", **options).step == 5
    monkeypatch.setattr(slm.training.loop, "train_step", real_step)
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


def test_a_mixture_names_a_dataset_that_has_no_cuts_left(lm_settings, token_dataset, monkeypatch):
    dataset = TokenDataset([token_dataset] * 2)
    first = dataset.folder_begins[1]
    monkeypatch.setattr("slm.training.loaders.split", lambda *_: (np.arange(first, len(dataset)), np.arange(first)))
    vocabulary = Vocabulary(dataset.codebook_size, dataset.token_rate, "tiny", dataset.fingerprint)
    with pytest.raises(InputError, match=f"{token_dataset}: all of its cuts are held out"):
        loaders(lm_settings, dataset, vocabulary, None, (3.0, 1.0))


def test_rows_longer_than_all_cuts_are_refused(lm_config, lm_settings, token_dataset, tmp_path):
    settings = dataclasses.replace(lm_settings, row_tokens=100_000)
    with pytest.raises(InputError, match=r"train\.row_tokens is 100000, but all cuts for training together have \d+"):
        train(lm_config, settings, [token_dataset], tmp_path / "run", show_progress=False)
