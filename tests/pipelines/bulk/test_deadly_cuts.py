"""Cuts that kill whoever touches them are found, quarantined, and cost no other cut a bit."""

import itertools
import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from pipelines.bulk.crew import find_deadly_cuts
from pipelines.dataset.token_dataset import TokenDataset
from pipelines.tools.verify import verify


@pytest.mark.parametrize("deadly", [{0}, {12}, {5, 6}, {0, 3, 11}, set(range(13))])
def test_bisecting_finds_all_of_them(deadly):
    tried = []

    def kills(cuts):
        tried.append(list(cuts))
        return "SIGKILL" if deadly & set(cuts) else None

    assert find_deadly_cuts(kills, 13) == dict.fromkeys(deadly, "SIGKILL")
    if len(deadly) == 1:
        assert sum(map(len, tried)) <= 13 * 4  # by halves, not one by one


def test_what_kills_without_any_cut_is_no_cuts_fault():
    assert find_deadly_cuts(lambda cuts: "SIGKILL", 13) == {}
    assert find_deadly_cuts(lambda cuts: None, 13) == {}  # nor what kills only sometimes


@pytest.mark.parametrize("ends", range(16))
def test_a_worker_killed_from_outside_is_no_cuts_fault(ends):
    """Whichever trial it is that something else ends."""
    trials = itertools.count()

    def kills(cuts):
        return "SIGKILL" if next(trials) == ends or 5 in cuts else None

    assert find_deadly_cuts(kills, 13) == {5: "SIGKILL"}


@pytest.mark.slow
def test_a_run_that_died_of_a_cut_finds_it_and_the_others_keep_their_tokens(
    write_manifest, speech, run, tmp_path, tiny_codec_dir
):
    """Lhotse runs the command of a "command" source, and here that kills the process it runs for. In one process that
    is the end of the run; the same command again works in processes that may die."""
    manifest = write_manifest({f"cut-{i}": speech(i, 0.5 + i / 10) for i in range(4)})
    run(manifest, tmp_path / "whole")
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines[1]["recording"]["sources"][0].update(type="command", source="kill -SEGV $PPID")
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    arguments = ["tokenize", str(manifest), str(out), "--codec", str(tiny_codec_dir), "--workers", "1"]
    arguments += ["--allow-commands"]
    command = [sys.executable, "-m", "slm.cli", *arguments, "--batch-seconds", "6", "--shard-cuts", "5"]
    assert subprocess.run(command, stderr=subprocess.PIPE).returncode == -signal.SIGSEGV
    assert subprocess.run(command, stderr=subprocess.PIPE).returncode == 0
    entry = json.loads((out / "quarantine.jsonl").read_text())
    assert (entry["id"], entry["reason"]) == ("cut-1", "killed its worker") and "SIGSEGV" in entry["detail"]
    whole, survivors = TokenDataset(tmp_path / "whole"), TokenDataset(out)
    for row, i in enumerate((0, 2, 3)):
        np.testing.assert_array_equal(survivors.codes(row), whole.codes(i))
    assert verify(out) == []
