"""Two processes train as one does; a run may go on with another number of them."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import slm.training.loop
from pipelines.dataset.token_dataset import TokenDataset
from slm.checkpoint import checkpoints_of, load_lm
from slm.cli import main
from slm.model.transformer import LanguageModel
from slm.training.loaders import loaders
from slm.training.parallel import distribute
from slm.training.train import train
from slm.vocabulary import Vocabulary
from tests.rank_processes import together
from tests.slm.conftest import MODEL, SETTINGS
from tests.slm.training.test_train import log_of
from tokenizer.errors import InputError
from tokenizer.runs.ranks import Ranks, join_ranks

CONFIG = dataclasses.replace(MODEL, dropout=0.0)  # processes draw dropout for themselves
RUN = dataclasses.replace(SETTINGS, steps=9, validate_every=4, validation_rows=3, save_every=3)

_GRID = dataclasses.replace(RUN, steps=5, validate_every=5, parallel="fsdp", fsdp_replicas=2, rows_at_once=1)
GRID = {"float32": _GRID, "bfloat16": dataclasses.replace(_GRID, bfloat16=True, fsdp_bfloat16=True)}


def child(token_dataset: Path, out: Path) -> None:
    """What each of two processes does: all of a run with DDP; the beginning, or the end, of one with FSDP."""
    with join_ranks("cpu") as (ranks, device):
        fsdp = dataclasses.replace(RUN, parallel="fsdp", recompute=True)
        if (out / "sharded").exists():
            train(CONFIG, fsdp, [token_dataset], out / "sharded", resume=True, show_progress=False, ranks=ranks)
            return
        train(CONFIG, RUN, [token_dataset], out / "whole", show_progress=False, ranks=ranks)
        stop_after(4, ranks.rank == 1)  # one hears the signal, and both stop
        report = train(CONFIG, fsdp, [token_dataset], out / "sharded", show_progress=False, device=device, ranks=ranks)
        assert (report.stopped_by, report.step) == ("SIGTERM", 4)


def grid_child(token_dataset: Path, out: Path) -> None:
    """What each of four processes does: two groups of two shards, in float32 and with weights gathered in bfloat16."""
    with join_ranks("cpu") as (ranks, device):
        for name, settings in GRID.items():
            train(CONFIG, settings, [token_dataset], out / name, show_progress=False, device=device, ranks=ranks)


def stop_after(step: int, here: bool = True) -> None:
    real_step = slm.training.loop.train_step

    def step_and_signal(*args):
        result = real_step(*args)
        if here and args[4] + 1 == step:
            signal.raise_signal(signal.SIGTERM)
        return result

    slm.training.loop.train_step = step_and_signal


def dying_child(token_dataset: Path, out: Path) -> None:
    """Process 1 is killed at its third step."""
    real_step = slm.training.loop.train_step

    def step_and_die(*args):
        if args[4] == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return real_step(*args)

    slm.training.loop.train_step = step_and_die
    sys.exit(main(f"train-lm --config tiny --data {token_dataset} --out {out / 'run'} --no-bfloat16".split()))


def refused_child(token_dataset: Path, out: Path) -> None:
    """Process 1 alone finds its data damaged."""
    data = token_dataset if os.environ["RANK"] == "0" else out / "nothing"
    sys.exit(main(f"train-lm --config tiny --data {data} --out {out / 'run'} --no-bfloat16".split()))


def by_torchrun(token_dataset: Path, out: Path, what: str) -> subprocess.CompletedProcess:
    """Two processes."""
    program = out / "child.py"
    program.write_text(
        f"from pathlib import Path\nfrom tests.slm.training.test_parallel import {what}\n"
        f"{what}(Path({str(token_dataset)!r}), Path({str(out)!r}))\n"
    )
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_and_go_on_as_one_and_as_two(token_dataset, tmp_path, monkeypatch):
    train(CONFIG, RUN, [token_dataset], tmp_path / "one", show_progress=False)
    together(child, token_dataset, tmp_path)
    monkeypatch.setattr(slm.training.loop, "train_step", slm.training.loop.train_step)  # so that what follows is undone
    stop_after(7)
    report = train(CONFIG, RUN, [token_dataset], tmp_path / "sharded", resume=True, show_progress=False)
    assert report.step == 7
    assert [path.name for path in checkpoints_of(tmp_path / "sharded")][-1] == "step-000007"
    together(child, token_dataset, tmp_path)
    one, sharded, whole = (log_of(tmp_path / name) for name in ("one", "sharded", "whole"))
    assert [line["step"] for line in sharded] == list(range(1, 10))
    for key in ("bits_per_token", "gradient_norm", "held_out_bits_per_token"):
        expected, *found = ([line[key] for line in log if key in line] for log in (one, sharded, whole))
        # The same sums in another order: float32's rounding, which AdamW's first steps magnify where a gradient is
        # next to nothing.
        np.testing.assert_allclose(found, [expected] * 2, rtol=1e-4)
        assert len(set(expected)) == len(expected)
    models = [load_lm(tmp_path / name / "step-000009")[0].state_dict() for name in ("one", "sharded", "whole")]
    (tmp_path / "sharded/step-000009/optimizer/shard-00002-model-00001-of-00001.safetensors").unlink()
    for listed in (True, False):
        if not listed:
            (tmp_path / "sharded/step-000009/files.json").unlink()
        with pytest.raises(InputError, match=r"step-000009: cannot be resumed from \(.* is missing\)"):
            train(CONFIG, RUN, [token_dataset], tmp_path / "sharded", resume=True, show_progress=False)
    for other in models[1:]:
        torch.testing.assert_close(other, models[0], atol=2e-3, rtol=1e-3)  # the learning rate is 1e-2


@pytest.mark.soak
@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "dying_child",
            "process 0 of 2 on .*: another process has died or stopped answering .*Continue with --resume",
        ),
        ("refused_child", ".*nothing.*"),
    ],
)
def test_a_process_that_dies_or_refuses_ends_the_run_with_one_line(token_dataset, tmp_path, what, message):
    done = by_torchrun(token_dataset, tmp_path, what)
    said = [line for line in done.stderr.splitlines() if line.startswith("focalstream")]
    assert done.returncode and len(said) == 1 and re.fullmatch(f"focalstream train-lm: {message}", said[0]), done.stderr
    ours = done.stderr.partition("ChildFailedError")[0]  # torchrun ends with a traceback of its own
    assert "slm/training" not in ours, done.stderr


@pytest.mark.soak
def test_two_groups_of_two_shards_have_the_losses_of_one_process(token_dataset, tmp_path):
    for name, settings in GRID.items():
        alone = dataclasses.replace(settings, parallel="ddp", fsdp_replicas=1, fsdp_bfloat16=False)
        train(CONFIG, alone, [token_dataset], tmp_path / f"{name}-alone", show_progress=False)
    together(grid_child, token_dataset, tmp_path, processes=4)
    # In bfloat16 the products are the same, but the gains of the norms are rounded too: 8 bits.
    for name, tolerance in (("float32", 1e-4), ("bfloat16", 5e-3)):
        found, expected = log_of(tmp_path / name), log_of(tmp_path / f"{name}-alone")
        for key in ("bits_per_token", "gradient_norm"):
            np.testing.assert_allclose(
                [line[key] for line in found], [line[key] for line in expected], rtol=tolerance, err_msg=f"{name} {key}"
            )
    resumed = dataclasses.replace(GRID["float32"], steps=6)  # by one process
    assert train(CONFIG, resumed, [token_dataset], tmp_path / "float32", resume=True, show_progress=False).step == 6


def test_processes_that_cannot_be_grouped_are_refused():
    with pytest.raises(InputError, match=r"train\.fsdp_replicas is 3, which does not divide 4 processes"):
        distribute(LanguageModel(CONFIG, 300), "fsdp", Ranks(0, 4), replicas=3)
    with pytest.raises(InputError, match=r"train\.fsdp_replicas is 2, but train\.parallel ddp"):
        dataclasses.replace(RUN, fsdp_replicas=2)
    with pytest.raises(InputError, match=r"train\.fsdp_bfloat16 is true with .*train\.bfloat16 False"):
        dataclasses.replace(RUN, parallel="fsdp", fsdp_bfloat16=True)


def test_rows_that_cannot_be_divided_are_refused(token_dataset):
    dataset = TokenDataset(token_dataset)
    with pytest.raises(InputError, match="4 rows per step cannot be divided among 3 ranks"):
        loaders(RUN, dataset, Vocabulary(dataset.codebook_size, 50.0, "codec", "ab" * 32), None, ranks=Ranks(0, 3))
