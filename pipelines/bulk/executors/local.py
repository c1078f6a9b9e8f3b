"""Shards in worker processes of this machine, which are replaced when they die."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from pipelines.bulk.crew import run_crew
from pipelines.bulk.encoding import fixed_cpu_threads
from pipelines.bulk.executors.base import Executor
from pipelines.bulk.executors.inline import Inline
from pipelines.bulk.tasks import Event, Progress, Ready, Report, ShardWork, Task, Worker, do_task, load_codec, portable
from pipelines.format.layout import Layout
from tokenizer.errors import InputError
from tokenizer.machine import available_cores

if TYPE_CHECKING:
    from tokenizer import Codec


@dataclass(frozen=True)
class Local(Executor):
    """Worker processes, each with a codec of its own.

    Attributes:
        workers: how many; None: one per CPU core, or one on another device.
        inline_if_one: with a single worker, or a single shard, do the work in this process, which has a codec loaded.
    """

    workers: int | None = None
    inline_if_one: bool = False

    def __post_init__(self) -> None:
        check_workers(self.workers)

    def run(self, work: ShardWork, tasks: list[Task], report: Report, codec: Codec) -> None:
        default = available_cores() if work.encoding.device == "cpu" else 1
        workers = min(self.workers or default, len(tasks))
        if self.inline_if_one and workers <= 1:
            Inline().run(work, tasks, report, codec)
        else:
            run_crew(Processes(work), Layout(work.out), tasks, report, workers)

    def after_interruption(self) -> Executor:
        return Local(self.workers)  # a worker that crashes is replaced; this process would not be


def check_workers(workers: int | None) -> None:
    """Raise InputError for less than one worker."""
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}, expected at least 1 (or --executor inline for no worker processes)")


class Processes:
    """The `Crew` of worker processes."""

    def __init__(self, work: ShardWork) -> None:
        self._work = work

    def hire(self) -> WorkerProcess:
        return WorkerProcess(self._work)

    def heard(self, workers: Sequence[Worker], seconds: float | None) -> list[Worker]:
        links = {worker.link: worker for worker in workers if isinstance(worker, WorkerProcess)}
        return [links[link] for link in wait(list(links), seconds)]  # type: ignore[index]


class WorkerProcess:
    """A worker process and the pipe to it; see `pipelines.bulk.tasks.Worker`."""

    def __init__(self, work: ShardWork) -> None:
        # Spawned, not forked: a forked child inherits torch's thread pools and CUDA state in the middle of their work.
        context = multiprocessing.get_context("spawn")
        self.link, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, work), daemon=True)
        with _interrupts_blocked():
            self.process.start()
        theirs.close()
        self.task: Task | None = None
        self.reported = 0.0

    def take(self, task: Task) -> None:
        self.task, self.reported = task, 0.0
        with contextlib.suppress(OSError):  # it died while idle: `event` finds out
            self.link.send(task)

    def event(self) -> Event | None:
        try:
            event = self.link.recv()
        except (EOFError, OSError):  # the latter when it was killed in the middle of a message
            return None
        if isinstance(event, Exception):
            raise event
        if isinstance(event, Progress):
            self.reported += event.seconds
        return event

    def ending(self) -> str:
        self.process.join()
        self.link.close()
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"exit code {code}; 1 usually means that memory ran out"
        name = signal.Signals(-code).name
        why = {
            "SIGKILL": "; usually the kernel, because memory ran out",
            "SIGSEGV": "; a crash in a native library",
        }
        return name + why.get(name, "")

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.link.close()


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block SIGINT, so that a process started now ignores it: Ctrl-C reaches the whole process group, but only the
    parent acts on it. Does nothing on Windows, which blocks no signals."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # otherwise the process starts it, which unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(link: Connection, work: ShardWork) -> None:
    """The worker's side: load the codec, then do shards until the parent stops the process."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        codec = load_codec(work)
        link.send(Ready())
        with fixed_cpu_threads():
            while True:
                task = link.recv()
                link.send(do_task(work, task, codec, lambda seconds: link.send(Progress(seconds))))
    except (EOFError, BrokenPipeError):
        return
    except MemoryError:
        os._exit(1)  # like a process that the kernel kills: the shard is tried again
    except Exception as error:
        link.send(portable(error))


def _die_with_parent() -> None:
    """End this process when its parent ends, even by kill -9: an orphan could write into the OUT of a later run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
