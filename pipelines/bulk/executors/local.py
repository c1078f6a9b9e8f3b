"""Shards in worker processes of this machine, which are replaced when they die."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from pipelines.bulk.crew import run_crew
from pipelines.bulk.encoding import fixed_cpu_threads
from pipelines.bulk.executors.base import Executor
from pipelines.bulk.executors.inline import Inline
from pipelines.bulk.feed.processes import die_with_parent, how_it_ended, interrupts_blocked, portable
from pipelines.bulk.tasks import (
    Claim,
    Event,
    Ready,
    Report,
    ShardWork,
    Task,
    TasksInHand,
    WantsMore,
    Worker,
    do_tasks,
    in_bundles,
    load_codec,
)
from pipelines.format.layout import Layout
from tokenizer.errors import InputError
from tokenizer.machine import available_cores

if TYPE_CHECKING:
    from tokenizer import Codec


MOST_DECODERS = 16  # that a worker gets unasked


@dataclass(frozen=True)
class Local(Executor):
    """Worker processes, each with a codec of its own.

    Attributes:
        workers: how many; None: one per CPU core, or one on each other device.
        devices: that the workers are dealt out to, all of one type; none: that of the run.
        inline_if_one: with a single worker, or a single shard, do the work in this process, which has a codec loaded.
    """

    workers: int | None = None
    inline_if_one: bool = False
    devices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_workers(self.workers)

    def run(self, work: ShardWork, tasks: list[Task], report: Report, codec: Codec, claim: Claim) -> None:
        default = available_cores() if work.encoding.device == "cpu" else len(self.devices) or 1
        workers = min(self.workers or default, len(list(in_bundles(tasks))))
        if work.decoders is None:
            work = replace(work, decoders=decoders_for(work.encoding.device, max(workers, 1)))
        if self.inline_if_one and workers <= 1:
            Inline().run(work, tasks, report, codec, claim)
        else:
            run_crew(Processes(work, self.devices), Layout(work.out), tasks, report, workers, claim)

    def processes(self) -> int:
        return self.workers or available_cores()

    def after_interruption(self) -> Executor:
        return Local(self.workers, devices=self.devices)  # a worker that crashes is replaced; this process would not be


def check_workers(workers: int | None) -> None:
    """Raise InputError for less than one worker."""
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}, expected at least 1 (or --executor inline for no worker processes)")


def decoders_for(device: str, workers: int) -> int:
    """Decoding processes of each worker where nobody says how many: on a GPU the cores that are left, on a CPU none."""
    if device == "cpu":
        return 0
    return min(max(1, available_cores() // workers - 1), MOST_DECODERS)


class Processes:
    """The `Crew` of worker processes; each has the device that the fewest others have."""

    def __init__(self, work: ShardWork, devices: Sequence[str] = ()) -> None:
        self._work = work
        self._devices = {device: list[WorkerProcess]() for device in devices or [work.encoding.device]}

    def hire(self) -> WorkerProcess:
        for workers in self._devices.values():
            workers[:] = [worker for worker in workers if worker.process.is_alive()]
        device = min(self._devices, key=lambda device: len(self._devices[device]))
        encoding = replace(self._work.encoding, device=device)
        worker = WorkerProcess(replace(self._work, encoding=encoding))
        self._devices[device].append(worker)
        return worker

    def heard(self, workers: Sequence[Worker], seconds: float | None) -> list[Worker]:
        links = {worker.link: worker for worker in workers if isinstance(worker, WorkerProcess)}
        return [links[link] for link in wait(list(links), seconds)]  # type: ignore[index]


class WorkerProcess(TasksInHand):
    """A worker process and the pipe to it; see `pipelines.bulk.tasks.Worker`."""

    def __init__(self, work: ShardWork) -> None:
        super().__init__()
        # Spawned, not forked: a forked child inherits torch's thread pools and CUDA state in the middle of their work.
        context = multiprocessing.get_context("spawn")
        self.link, theirs = context.Pipe()
        # Python lets daemons have no children, and a worker may have decoders. It ends with its parent all the same.
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, work), daemon=not work.decoders)
        with interrupts_blocked():
            self.process.start()
        theirs.close()

    def take(self, tasks: Sequence[Task]) -> None:
        self.tasks += tasks
        with contextlib.suppress(OSError):  # it died while idle: `event` finds out
            self.link.send(list(tasks))

    def event(self) -> Event | None:
        try:
            event = self.link.recv()
        except (EOFError, OSError):  # the latter when it was killed in the middle of a message
            return None
        if isinstance(event, Exception):
            raise event
        self.count(event)
        return event

    def ending(self) -> str:
        self.process.join()
        self.link.close()
        return how_it_ended(self.process.exitcode)

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.link.close()


def _serve(link: Connection, work: ShardWork) -> None:
    """The worker's side: load the codec, then do shards until the parent stops the process."""
    die_with_parent()

    def bundles(emit: Report) -> Iterator[list[Task]]:
        while True:
            emit(WantsMore())
            yield link.recv()

    try:
        codec = load_codec(work)
        link.send(Ready())
        with fixed_cpu_threads():
            do_tasks(work, bundles, codec, link.send)
    except (EOFError, BrokenPipeError):
        return
    except MemoryError:
        os._exit(1)  # like a process that the kernel kills: the shard is tried again
    except Exception as error:
        link.send(portable(error))
