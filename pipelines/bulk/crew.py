"""Engines: the same shards, done in this process or by workers that may die.

An engine takes a list of tasks, one a shard, and reports progress and receipts; the caller need not know who did the
work.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Protocol

from pipelines.bulk.deadly_cuts import Trials, find_deadly_cuts
from pipelines.bulk.encoding import fixed_cpu_threads
from pipelines.bulk.plan import shard_cuts
from pipelines.bulk.worker_process import Event, Progress, Ready, ShardWork, Task, Worker, WorkerProcess, do_task
from pipelines.format.layout import Layout
from pipelines.format.ledger import Receipt
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer import Codec

MAX_DEATHS = 2  # of workers over one shard, before its deadly cuts are looked for; and in a row before any task
SEARCH_LOOK_SECONDS = 0.5  # between two looks whether a search for deadly cuts is over

Report = Callable[[Event], None]


class WorkerDied(InputError):
    """A shard brought down its workers, and no cut of it is to blame."""


class Crew(Protocol):
    """Where workers come from."""

    def hire(self) -> Worker:
        """A new worker. It loads the codec, and then sends `Ready`."""

    def heard(self, workers: Sequence[Worker], seconds: float | None) -> list[Worker]:
        """Those of these workers that sent something or died; waits for the first of them, `seconds` at most."""


def run_inline(work: ShardWork, tasks: list[Task], report: Report, codec: Codec) -> None:
    """Do the shards in this process, one after the other, with a codec that is loaded already."""
    with fixed_cpu_threads():
        for task in tasks:
            report(do_task(work, task, codec, lambda seconds: report(Progress(seconds))))


class Processes:
    """Workers that are processes of this machine."""

    def __init__(self, work: ShardWork) -> None:
        self._work = work

    def hire(self) -> WorkerProcess:
        return WorkerProcess(self._work)

    def heard(self, workers: Sequence[Worker], seconds: float | None) -> list[Worker]:
        links = {worker.link: worker for worker in workers if isinstance(worker, WorkerProcess)}
        return [links[link] for link in wait(list(links), seconds)]  # type: ignore[index]


def run_crew(crew: Crew, out: Layout, tasks: list[Task], report: Report, size: int) -> None:
    """Do the shards with at most `size` workers at a time.

    One that dies (out of memory, a crash, killed, its machine gone) is replaced, its shard done again. Where that
    happens `MAX_DEATHS` times to a shard by its own fault, the cuts that kill workers are looked for, while the others
    go on, and left out. Who has nothing more to do is let go, so that a cluster can shrink.

    Raises:
        WorkerDied: no cut is to blame by itself, or without those that are it happened again; or workers die before
            they have a task.
    """
    todo, unfinished, deaths = deque(tasks), {task.shard for task in tasks}, Counter[int]()
    workers: list[Worker] = []
    loading: list[Worker] = []
    stillborn = 0
    searches: dict[Future[Task], Trials] = {}
    searchers = ThreadPoolExecutor(thread_name_prefix="find-deadly-cuts")
    try:
        while unfinished:
            while len(workers) < size and len(loading) < len(todo):
                workers.append(crew.hire())
                loading.append(workers[-1])
            for worker in crew.heard(workers, SEARCH_LOOK_SECONDS if searches else None):
                event = worker.event()
                if event is None:
                    workers.remove(worker)
                    ending = worker.ending()
                    if worker in loading:
                        loading.remove(worker)
                        stillborn += ending is not None
                        if stillborn > MAX_DEATHS:
                            raise WorkerDied(f"workers die as they load the codec (the last by {ending})")
                    elif worker.task is not None:
                        report(Progress(-worker.reported))
                        deaths[worker.task.shard] += ending is not None
                        if ending is None or deaths[worker.task.shard] < MAX_DEATHS:
                            todo.appendleft(worker.task)
                        else:
                            trials = Trials(crew.hire, worker.task.shard, len(shard_cuts(out, worker.task.shard)))
                            searches[searchers.submit(_without_deadly_cuts, trials, worker.task, ending)] = trials
                    continue
                report(event)
                if isinstance(event, Ready):
                    loading.remove(worker)
                    stillborn = 0
                elif isinstance(event, Receipt):
                    unfinished.discard(event.shard)
                else:
                    continue
                if todo:
                    worker.take(todo.popleft())
                else:
                    worker.stop()
                    workers.remove(worker)
            for search in [search for search in searches if search.done()]:
                del searches[search]
                todo.appendleft(search.result())
    finally:
        for trials in searches.values():
            trials.close()
        for worker in workers:
            worker.stop()
        searchers.shutdown()


def _without_deadly_cuts(trials: Trials, task: Task, ending: str) -> Task:
    """The task without the cuts that killed its workers."""
    try:
        deadly = find_deadly_cuts(trials, trials.count) if not task.left_out else {}
    finally:
        trials.close()
    if not deadly:
        raise WorkerDied(
            f"shard {task.shard} brought down {MAX_DEATHS} workers (the last by {ending}), and no cut of it is to "
            "blame by itself. Finished shards are kept: run the same command with fewer --workers, or with another OUT "
            "and fewer --batch-seconds"
        )
    return Task(task.shard, deadly)
