"""Checkpoints written in the background: the same as in the foreground, one at a time, and waited for."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from typing import Any

import pytest

import slm.training.loop
from slm.checkpoint import checkpoints_of
from slm.training.checkpoints import saving
from slm.training.train import train
from tests.slm.training.test_train import log_of, weights_of
from tokenizer.errors import InputError


@pytest.fixture
def run(lm_config, lm_settings, token_dataset, tmp_path):
    """Trains in tmp_path/name, 8 steps, a checkpoint every 2."""

    def begin(name: str, background: bool = True, **options: Any) -> Any:
        changes = {"steps": 8, "save_every": 2, "validate_every": 8, "keep_checkpoints": 9}
        settings = dataclasses.replace(lm_settings, save_in_background=background, **changes)
        return train(lm_config, settings, [token_dataset], tmp_path / name, **({"show_progress": False} | options))

    return begin


def test_a_slow_thread_writes_what_the_weights_were_at_that_step(run, tmp_path, monkeypatch):
    """Training is two steps ahead before anything is written, and must not show in the files."""
    run("foreground", background=False)
    ahead, in_flight, most = threading.Event(), [], []
    real_write, real_step = saving.write_lm, slm.training.loop.train_step

    def late_write(*given: Any) -> None:
        assert ahead.wait(60)
        in_flight.append(1)
        most.append(len(in_flight))
        real_write(*given)
        in_flight.pop()

    def step(*given: Any) -> Any:
        found = real_step(*given)
        if given[4] == 3:  # the fourth step is done, and the checkpoint after the second is not written yet
            assert not checkpoints_of(tmp_path / "background")
            ahead.set()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_lm", late_write)
        patch.setattr(slm.training.loop, "train_step", step)
        run("background")
    assert len(most) == 4 and max(most) == 1
    for number in (2, 4, 6, 8):
        assert weights_of(tmp_path / "background", number) == weights_of(tmp_path / "foreground", number)
    for late in checkpoints_of(tmp_path / "background")[1:]:  # as if it had died after the first
        shutil.rmtree(late)
    run("background", resume=True)  # the moments too
    assert weights_of(tmp_path / "background", 8) == weights_of(tmp_path / "foreground", 8)
    assert log_of(tmp_path / "background") == log_of(tmp_path / "foreground")


def test_a_failing_write_ends_the_run_in_one_line(run, tmp_path, monkeypatch):
    failed, real_step, steps = threading.Event(), slm.training.loop.train_step, []

    def fail(*_: Any) -> None:
        failed.set()
        raise OSError(28, "No space left on device")

    def step(*given: Any) -> Any:
        if given[4] == 2:
            assert failed.wait(60)
        steps.append(given[4])
        return real_step(*given)

    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_lm", fail)
        patch.setattr(slm.training.loop, "train_step", step)
        with pytest.raises(
            InputError, match=r"step-000002: the checkpoint cannot be written \(.*No space left"
        ) as told:
            run("run")
    said = str(told.value)
    assert "\n" not in said and "step-000002: " in said and "the last one is none" in said
    assert steps[-1] in (2, 3)  # it is noticed after the step, or when the next checkpoint is due
    assert not list((tmp_path / "run").glob("*step-*"))
    assert run("run", resume=True).step == 8


def test_the_end_by_an_error_waits_for_the_checkpoint_in_flight(run, tmp_path, monkeypatch):
    real_write, real_step = saving.write_lm, slm.training.loop.train_step
    died = threading.Event()

    def late_write(*given: Any) -> None:
        assert died.wait(60)
        real_write(*given)

    def die(*given: Any) -> Any:
        if given[4] == 2:
            died.set()
            raise RuntimeError("power cut")
        return real_step(*given)

    monkeypatch.setattr(saving, "write_lm", late_write)
    monkeypatch.setattr(slm.training.loop, "train_step", die)
    with pytest.raises(RuntimeError, match="power cut"):
        run("run")
    assert [folder.name for folder in checkpoints_of(tmp_path / "run")] == ["step-000002"]
