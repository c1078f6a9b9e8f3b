"""Engines: the same shards, done in this process or by worker processes of this machine.

An engine takes a list of tasks, one a shard, and reports progress and receipts; the caller need not know who did the
work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

from pipelines.deadly_cuts import Trials, describe_end, find_deadly_cuts
from pipelines.encoding import fixed_cpu_threads
from pipelines.layout import Layout
from pipelines.plan import shard_cuts
from pipelines.shards import Receipt
from pipelines.worker_process import Event, Progress, ShardWork, Task, Worker, do_task

if TYPE_CHECKING:
    from tokenizer.codec import Codec

MAX_DEATHS = 2  # of workers over one shard, before its deadly cuts are looked for

Report = Callable[[Event], None]


class WorkerDied(RuntimeError):
    """A shard brought down its workers, and no cut of it is to blame."""


def run_inline(work: ShardWork, tasks: list[Task], report: Report, codec: Codec) -> None:
    """Do the shards in this process, one after the other, with a codec that is loaded already."""
    with fixed_cpu_threads():
        for task in tasks:
            report(do_task(work, task, codec, lambda seconds: report(Progress(seconds))))


def run_processes(work: ShardWork, tasks: list[Task], report: Report, workers: int) -> None:
    """Do the shards with `workers` processes.

    One that dies (out of memory, a crash, killed) is replaced, its shard done again. Where that happens `MAX_DEATHS`
    times to a shard, the cuts that kill workers are found and left out.

    Raises:
        WorkerDied: no cut is to blame by itself, or without those that are it happened again.
    """
    todo, deaths = deque(tasks), dict.fromkeys((task.shard for task in tasks), 0)
    crew = [Worker(work) for _ in range(min(workers, len(tasks)))]
    try:
        for worker in crew:
            worker.take(todo.popleft())
        while busy := {worker.link: i for i, worker in enumerate(crew) if worker.task is not None}:
            for i in [busy[link] for link in wait(list(busy))]:  # type: ignore[index]
                event = crew[i].event()
                if event is None:
                    report(Progress(-crew[i].reported))
                    todo.appendleft(_after_death(work, crew[i], deaths))
                    crew[i] = Worker(work)
                else:
                    report(event)
                if event is None or isinstance(event, Receipt):
                    crew[i].take(todo.popleft() if todo else None)
    finally:
        for worker in crew:
            worker.stop()


def _after_death(work: ShardWork, worker: Worker, deaths: dict[int, int]) -> Task:
    """What is to be done about the task of a dead worker."""
    task, ending = worker.task, describe_end(worker)
    assert task is not None
    deaths[task.shard] += 1
    if deaths[task.shard] < MAX_DEATHS:
        return task
    count = len(shard_cuts(Layout(work.out), task.shard))
    trials = Trials(work, task.shard, count)
    try:
        deadly = find_deadly_cuts(trials, count, ending) if not task.left_out else {}
    finally:
        trials.close()
    if not deadly:
        raise WorkerDied(
            f"shard {task.shard} brought down {deaths[task.shard]} workers (the last by {ending}), and no cut of it is "
            "to blame by itself. Finished shards are kept: run the same command with fewer --workers, or with another "
            "OUT and fewer --batch-seconds"
        )
    return Task(task.shard, deadly)
