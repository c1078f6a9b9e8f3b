"""The folder of a run: whose it is, and what it is good for when something is missing."""

import dataclasses
import json
import shutil

import pytest

import slm.training.loop
import slm.training.train
from slm.checkpoint import checkpoints_of, load_lm, read_best
from slm.cli import main
from slm.training.train import train
from tokenizer.errors import InputError


@pytest.fixture
def run(lm_config, lm_settings, token_dataset, tmp_path):
    """Trains in tmp_path/run, 8 steps, a checkpoint and a validation every 4."""

    def begin(**options):
        changes = {"steps": 8, "save_every": 4, "validate_every": 4} | options.pop("settings", {})
        settings = dataclasses.replace(lm_settings, **changes)
        return train(lm_config, settings, [token_dataset], tmp_path / "run", show_progress=False, **options)

    return begin


def test_files_of_others_are_neither_taken_over_nor_removed(run, tmp_path):
    for name in ("step-1/model.pt", ".step-wip/notes", "best.json"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(InputError, match=r"is not empty \((step-1|\.step-wip|best\.json) is in it\)"):
        run()
    assert (tmp_path / "run/step-1/model.pt").read_text() == (tmp_path / "run/.step-wip/notes").read_text() == "mine"


def test_a_run_that_goes_on_is_not_joined(run, lm_settings, tmp_path, monkeypatch):
    """A job that was queued again while its first try is still alive."""
    tries = []

    def validate_beside_another(*arguments):
        if not tries:
            tries.append(1)
            with pytest.raises(InputError, match="another process is training in it"):
                run(resume=True)
        return 2.0

    monkeypatch.setattr(slm.training.train, "validate", validate_beside_another)
    assert run().step == 8 and tries
    lines = (tmp_path / "run/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))
    assert run(settings={"steps": 9}, resume=True).step == 9  # the lock went with its process


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_without_a_checkpoint_begins_anew(run, tmp_path, monkeypatch, resume):
    """It died before its first, or of a learning rate that it should now be given less of."""

    def die(*_):
        raise InputError("no power")

    with monkeypatch.context() as patch:
        patch.setattr(slm.training.loop, "train_step", die)
        with pytest.raises(InputError, match="no power"):
            run()
    assert (tmp_path / "run/run.json").exists()
    assert run(settings={"learning_rate": 5e-3}, resume=resume).step == 8


def test_a_run_stopped_before_its_first_validation_can_be_used(run, tmp_path):
    run(settings={"steps": 4, "validate_every": 4})
    (tmp_path / "run/best.json").unlink()
    named, _ = load_lm(tmp_path / "run/step-000004")
    found, _ = load_lm(tmp_path / "run")
    assert all((a == b).all() for a, b in zip(found.parameters(), named.parameters(), strict=True))


def test_a_best_checkpoint_that_was_deleted_is_forgotten(run, tmp_path, monkeypatch):
    bits = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(slm.training.train, "validate", lambda *_: next(bits))
    assert run().best_step == 4
    shutil.rmtree(tmp_path / "run/step-000004")
    assert run(settings={"steps": 12}, resume=True).best_step == 12
    assert read_best(tmp_path / "run")["checkpoint"] == "step-000012"


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:999])])
def test_a_checkpoint_without_its_weights_says_how_to_go_on(run, tmp_path, damage):
    run()
    damage(checkpoints_of(tmp_path / "run")[-1] / "model.safetensors")
    with pytest.raises(InputError, match=r"step-000008: cannot be resumed from .*delete this folder"):
        run(resume=True)


def test_a_log_that_is_none_is_named(run, tmp_path):
    run()
    with (tmp_path / "run/log.jsonl").open("a") as log:
        log.write("note to self\n")
    with pytest.raises(InputError, match=r"log\.jsonl: line 9 is no step of a run"):
        run(resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "heads={"], "--model heads={: '{' is not a YAML value"),
        (["--speech-weight", "nan"], "train.speech_weight is nan; expected a finite number"),
        (["--weight-decay", "nan"], "train.weight_decay is nan"),
        (["--learning-rate", "inf"], "train.learning_rate is inf"),
    ],
)
def test_what_is_no_number_is_refused(options, message, token_dataset, tmp_path, capsys):
    words = ["train-lm", "--config", "tiny", "--data", str(token_dataset), "--out", str(tmp_path / "run"), *options]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "run").exists()
