"""Worker processes: the same bytes as in one process, whatever happens to the workers."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pipelines.bulk.crew import WorkerDied
from pipelines.bulk.executors.local import Local, WorkerProcess
from pipelines.bulk.feed.processes import interrupts_blocked


@pytest.mark.slow
def test_same_bytes_by_a_worker_process(finished, audio_folder, run, tmp_path, file_bytes):
    run(audio_folder, tmp_path / "out", executor=Local(1))  # by two: below, with one of them killed
    assert file_bytes(tmp_path / "out") == file_bytes(finished)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)])
def test_signals_leave_whole_shards_only(finished, audio_folder, command, run, tmp_path, file_bytes, number):
    """Sent to the whole process group, as a terminal and most schedulers do."""
    out = tmp_path / "out"
    arguments = command(audio_folder, out, "--workers", "2", "--executor", "local")
    command_line = [sys.executable, "-m", "slm.cli", *arguments]
    process = subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True, start_new_session=True)
    moment = "work/receipts/*.json" if number == signal.SIGTERM else "work/plan.json"  # the latter: workers load
    while process.poll() is None and not list(out.glob(moment)):
        time.sleep(0.01)
    time.sleep(0.3 if number == signal.SIGINT else 0.0)
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=600)
    if process.returncode != 0:  # 0: it was faster than the signal
        assert process.returncode == 130 and "interrupted" in error and "Traceback" not in error
        assert not (out / "work/tmp").exists() and not (out / "dataset.json").exists()
        whole = {f"{int(path.stem):06d}" for path in out.glob("work/receipts/*.json")}
        assert {path.name.split(".")[1] for path in out.glob("shards/codes.*.tar")} >= whole
    run(audio_folder, out)
    assert file_bytes(out) == file_bytes(finished)


@pytest.mark.slow
def test_a_killed_worker_is_replaced(finished, audio_folder, run, tmp_path, file_bytes, monkeypatch):
    kill_workers(monkeypatch, times=1)
    run(audio_folder, tmp_path / "out", executor=Local(2))
    assert file_bytes(tmp_path / "out") == file_bytes(finished)


@pytest.mark.slow
def test_a_shard_that_kills_its_workers_whatever_is_in_it_ends_the_run(audio_folder, run, tmp_path, monkeypatch):
    kill_workers(monkeypatch, times=10)
    with pytest.raises(WorkerDied, match=r"shard \d+ killed 2 workers .*SIGKILL.* none of its cuts does so"):
        run(audio_folder, tmp_path / "out", executor=Local(1))


def kill_workers(monkeypatch, times):
    """SIGKILL a worker right after it was given a task, the first `times` times."""
    take, left = WorkerProcess.take, [times]

    def take_and_die(worker, task):
        take(worker, task)
        if left[0] and task is not None:
            left[0] -= 1
            os.kill(worker.process.pid, signal.SIGKILL)

    monkeypatch.setattr(WorkerProcess, "take", take_and_die)


def test_workers_start_where_signals_cannot_be_blocked(monkeypatch):
    """As on Windows, which has no `pthread_sigmask` and cannot start the resource tracker."""
    monkeypatch.delattr(signal, "pthread_sigmask")
    monkeypatch.setattr("multiprocessing.resource_tracker.ensure_running", lambda: pytest.fail("started"))
    with interrupts_blocked():
        pass


def test_interrupts_are_blocked_for_as_long_as_asked():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with interrupts_blocked():
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before | {signal.SIGINT}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
