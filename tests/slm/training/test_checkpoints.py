"""Checkpoints: complete or refused, kept as the settings say, and resumed from with a word where the rate jumps."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import slm.training.loop
import slm.training.train
from slm.checkpoint import checkpoints_of
from slm.cli import main
from slm.training.checkpoints.checkpoint_files import SEEN_WITHIN, check_shared, seal
from slm.training.checkpoints.run_folder import RunFolder
from slm.training.train import train
from tests.slm.training.test_train import log_of, weights_of
from tokenizer.errors import InputError
from tokenizer.runs.ranks import Ranks

MODEL, OPTIMIZER = "model.safetensors", "optimizer/shard-00001-model-00001-of-00001.safetensors"


@pytest.fixture
def run(lm_config, lm_settings, token_dataset, tmp_path):
    """Trains in tmp_path/run, 8 steps, a checkpoint every 4."""

    def begin(name: str = "run", **options: Any) -> Any:
        changes = {"steps": 8, "save_every": 4, "validate_every": 8, "keep_checkpoints": 9}
        settings = dataclasses.replace(lm_settings, **(changes | options.pop("settings", {})))
        return train(lm_config, settings, [token_dataset], tmp_path / name, **({"show_progress": False} | options))

    return begin


@dataclasses.dataclass(frozen=True)
class Threads(Ranks):
    """Processes as threads, which see whatever folders they are given."""

    barrier: Any = None
    values: Any = None

    def meet(self) -> None:
        self.barrier.wait()

    def gather(self, value: Any) -> list[Any]:
        self.values[self.rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values


def errors_of(world: int, what: Callable[[Ranks], None]) -> list[str]:
    """The error of each process that does `what`."""
    errors, barrier, values = [""] * world, threading.Barrier(world, timeout=60), [None] * world

    def one(rank: int) -> None:
        try:
            what(Threads(rank, world, barrier, values))
        except InputError as error:
            errors[rank] = str(error)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
@pytest.mark.parametrize(
    ("damage", "message"),
    [(Path.unlink, "is missing"), (cut_short, "has .* bytes instead of"), (flip_a_bit, "has another content")],
)
def test_a_torn_checkpoint_is_refused_in_one_line(run, tmp_path, name, damage, message):
    run()
    damage(tmp_path / "run/step-000008" / name)
    with pytest.raises(InputError, match=rf"step-000008: cannot be resumed from \({name} {message}") as caught:
        run(resume=True)
    assert "\n" not in str(caught.value) and "delete this folder" in str(caught.value)


def test_a_damaged_list_of_files_is_refused(run, tmp_path):
    run()
    (tmp_path / "run/step-000008/files.json").write_text('{"model.safetensors": 3}')
    with pytest.raises(InputError, match=r"cannot be resumed from \(files.json is damaged"):
        run(resume=True)


def test_an_older_checkpoint_without_a_list_resumes_only_if_its_optimizer_is_whole(run, tmp_path):
    run()
    (tmp_path / "run/step-000008/files.json").unlink()
    assert run(resume=True, settings={"steps": 9}).step == 9
    (tmp_path / "run/step-000009/files.json").unlink()
    (tmp_path / "run/step-000009" / OPTIMIZER).unlink()
    with pytest.raises(InputError, match="lacks everything: a file of a process is missing"):
        run(resume=True, settings={"steps": 10})


@pytest.mark.parametrize("room", [20_000, 150_000])  # bytes: not enough for the weights, or for the optimizer
def test_a_full_disk_is_one_line_and_leaves_no_half(run, tmp_path, room):
    run()
    sizes = [(tmp_path / "run/step-000008" / name).stat().st_size for name in (MODEL, OPTIMIZER)]
    assert 20_000 < sizes[0] < 150_000 < sizes[1]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)  # a write beyond it fails as one to a full disk does
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(
            InputError, match=r"step-000010: the checkpoint cannot be written .*the last one is step-00"
        ):
            run(resume=True, settings={"steps": 10})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "run").glob(".step-*"))
    assert [folder.name for folder in checkpoints_of(tmp_path / "run")] == ["step-000004", "step-000008"]
    assert run(resume=True, settings={"steps": 10}).step == 10


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", ".unfinished.abc", ".shared-0f"]])
def test_a_run_killed_before_its_first_write_begins_anew_on_resuming(run, tmp_path, left):
    (tmp_path / "run").mkdir()
    for name in left:
        (tmp_path / "run" / name).touch()
    assert run(resume=True).step == 8
    assert not list((tmp_path / "run").glob(".[us]*"))


def test_a_run_killed_while_it_begins_is_a_run(run, tmp_path, monkeypatch):
    """run.json comes first: whatever is there when the process dies, it is known whose it is."""

    def die(*_: Any) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr("slm.training.checkpoints.run_folder.forget_from", die)
        with pytest.raises(RuntimeError, match="power cut"):
            run()
    assert run(resume=True).step == 8


def test_going_back_to_an_earlier_checkpoint(run, tmp_path, capsys):
    run("steady")
    run()
    report = run(resume_from=4, show_progress=True)
    said = capsys.readouterr().err
    assert "resuming after step 4" in said and "removed later checkpoints: step-000008" in said and "jump" not in said
    assert report.step == 8 and log_of(tmp_path / "run") == log_of(tmp_path / "steady")
    assert weights_of(tmp_path / "run", 8) == weights_of(tmp_path / "steady", 8)
    with pytest.raises(InputError, match="no checkpoint of step 5; its checkpoints are of steps: 4, 8"):
        run(resume_from=5)


def test_the_command_resumes_from_a_step(run, token_dataset, tmp_path, capsys):
    run()
    assert main(f"train-lm --config tiny --data {token_dataset} --out {tmp_path / 'run'} --resume-from 3".split()) == 2
    assert "no checkpoint of step 3" in capsys.readouterr().err


def test_every_nth_checkpoint_and_the_one_before_the_decay_are_kept(run, tmp_path, monkeypatch):
    monkeypatch.setattr(slm.training.train, "validate", lambda *_: 1.0)
    settings = {"steps": 20, "schedule": "wsd", "decay_fraction": 0.35, "save_every": 3, "keep_checkpoints": 1}
    run(settings=settings | {"keep_every": 6, "validate_every": 20})
    kept = [folder.name for folder in checkpoints_of(tmp_path / "run")]
    assert kept == ["step-000006", "step-000012", "step-000013", "step-000018", "step-000020"]


def test_a_resume_whose_rate_jumps_says_so(run, tmp_path, capsys):
    settings = {"schedule": "wsd", "decay_fraction": 0.5, "save_every": 2}
    run(settings=settings)
    longer = {**settings, "steps": 16}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slm.training.loop, "reason_to_stop", lambda *_: "end")
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        run(resume=True, show_progress=True, settings=longer)
        said = capsys.readouterr().err
        assert "train.steps was 8, now 16" in said
        assert (
            "the learning rate jumps here from 0.001 to 0.01: the decay had begun after step 4; --resume-from" in said
        )
        run("copy", resume_from=4, show_progress=True, settings=longer)
        assert "jumps" not in capsys.readouterr().err
    (entry,) = json.loads((tmp_path / "run/run.json").read_text())["resumed"]
    assert entry["step"] == 8 and len(entry["changed"]) == 2


def test_a_rate_may_be_lowered_on_resuming_but_not_raised(run, tmp_path, capsys):
    run()
    with pytest.raises(InputError, match=r"another train\.learning_rate; a learning rate may only be lowered"):
        run(resume=True, settings={"steps": 12, "learning_rate": 2e-2})
    run(resume=True, show_progress=True, settings={"steps": 12, "learning_rate": 5e-3})
    assert "train.learning_rate was 0.01, now 0.005" in capsys.readouterr().err
    rates = [record["learning_rate"] for record in log_of(tmp_path / "run")]
    assert max(rates[:8]) == pytest.approx(1e-2) and max(rates[8:]) < 5e-3
    run(resume=True, settings={"steps": 13, "learning_rate": 5e-3})
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["train"]["learning_rate"] == 5e-3
    assert [entry["step"] for entry in record["resumed"]] == [8, 12]


def test_a_folder_that_the_processes_do_not_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("slm.training.checkpoints.checkpoint_files.SEEN_WITHIN", SEEN_WITHIN / 100)
    for rank in range(3):
        (tmp_path / str(min(rank, 1))).mkdir(exist_ok=True)
    errors = errors_of(3, lambda ranks: check_shared(tmp_path / str(min(ranks.rank, 1)), ranks))
    assert all("must be a folder that all machines share" in error for error in errors), errors
    assert errors_of(3, lambda ranks: check_shared(tmp_path, ranks)) == ["", "", ""]
    assert not list(tmp_path.rglob(".shared-*"))


def test_shares_that_the_first_process_does_not_see_are_no_checkpoint(tmp_path):
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / f"share-{rank}").write_bytes(b"abc")
    errors = errors_of(2, lambda ranks: seal(tmp_path / str(ranks.rank), ranks))
    assert all("processes 0 and 1 do not see the same share-" in error for error in errors), errors
    assert errors_of(2, lambda ranks: seal(tmp_path, ranks)) == ["", ""]
    assert len(json.loads((tmp_path / "files.json").read_text())) == 2


def test_a_process_that_cannot_begin_ends_all(tmp_path, lm_settings):
    """Each with the same line; none waits for another."""
    (tmp_path / "file").touch()
    paths = [tmp_path / "run", tmp_path / "file"]
    errors = errors_of(2, lambda ranks: RunFolder(paths[ranks.rank], lm_settings, ranks) and None)
    assert errors[0] == errors[1] == f"{paths[1]}: is a file; name a folder for the run"
