"""A crew of workers, any of which may die: dead ones are replaced, and cuts that kill workers are found and left out.

Where the workers come from is up to an executor (`pipelines.bulk.executors`).
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

from pipelines.bulk.stored_plan import shard_cuts
from pipelines.bulk.tasks import (
    Claim,
    Progress,
    Ready,
    Report,
    Survived,
    Task,
    WantsMore,
    Worker,
    in_bundles,
)
from pipelines.format.layout import Layout
from pipelines.format.ledger import Receipt
from tokenizer.errors import InputError

MAX_DEATHS = 2  # of workers at one shard before its deadly cuts are searched for; and in a row while loading the codec
SEARCH_LOOK_SECONDS = 0.5  # between two checks whether a search for deadly cuts has ended


class WorkerDied(InputError):
    """A shard killed its workers, but none of its cuts does so alone."""


class Crew(Protocol):
    """Starts workers and listens to them."""

    def hire(self) -> Worker:
        """Start a worker. It loads the codec, and then sends `Ready`, and `WantsMore` whenever it can take tasks."""

    def heard(self, workers: Sequence[Worker], seconds: float | None) -> list[Worker]:
        """Wait, at most `seconds`, until one of these workers has sent something or died; return those that have."""


def run_crew(crew: Crew, out: Layout, tasks: list[Task], report: Report, size: int, claim: Claim) -> None:
    """Do the shards with at most `size` workers at a time.

    A worker is given more when it asks, which is before it runs out. One that dies (no memory, a crash, killed, its
    machine lost) is replaced, and its shards are done again, each by itself. After `MAX_DEATHS` deaths that are a
    shard's own fault, the cuts that kill workers are searched for, while the other workers continue, and left out. Idle
    workers are released, so that a cluster can scale down.

    Args:
        size: workers.
        claim: returns the tasks of a bundle that this run is to do; other parts do the rest.

    Raises:
        WorkerDied: no single cut kills a worker, or workers still die without the cuts that do; or workers die while
            they load the codec.
    """
    todo, unfinished, deaths = deque(tasks), {task.shard for task in tasks}, Counter[int]()
    workers: list[Worker] = []
    loading: list[Worker] = []
    wanting: list[Worker] = []
    stillborn = 0
    searches: dict[Future[Task], Trials] = {}
    searchers = ThreadPoolExecutor(thread_name_prefix="find-deadly-cuts")
    try:
        while unfinished:
            while len(workers) < size and len(loading) < _bundles(todo, size):
                workers.append(crew.hire())
                loading.append(workers[-1])
            for worker in crew.heard(workers, SEARCH_LOOK_SECONDS if searches else None):
                event = worker.event()
                if event is None:
                    workers.remove(worker)
                    if worker in wanting:
                        wanting.remove(worker)
                    ending = worker.ending()
                    if worker in loading:
                        loading.remove(worker)
                        stillborn += ending is not None
                        if stillborn > MAX_DEATHS:
                            raise WorkerDied(f"workers die as they load the codec (the last by {ending})")
                    report(Progress(-worker.reported))
                    for task in reversed(worker.tasks):
                        deaths[task.shard] += ending is not None
                        if ending is None or deaths[task.shard] < MAX_DEATHS:
                            todo.appendleft(task)
                        else:
                            trials = Trials(crew.hire, task, len(shard_cuts(out, task.shard)))
                            searches[searchers.submit(_without_deadly_cuts, trials, task, ending)] = trials
                    continue
                report(event)
                if isinstance(event, Ready):
                    loading.remove(worker)
                    stillborn = 0
                elif isinstance(event, WantsMore):
                    wanting.append(worker)
                elif isinstance(event, Receipt):
                    unfinished.discard(event.shard)
            for search in [search for search in searches if search.done()]:
                del searches[search]
                todo.appendleft(search.result())
            for worker in list(wanting):
                if bundle := _next_bundle(todo, worker.tasks, deaths, claim, unfinished):
                    wanting.remove(worker)
                    worker.take(bundle)
                elif not worker.tasks:
                    wanting.remove(worker)
                    workers.remove(worker)
                    worker.stop()
    finally:
        for trials in searches.values():
            trials.close()
        for worker in workers:
            worker.stop()
        searchers.shutdown()


def _bundles(todo: deque[Task], most: int) -> int:
    """How many bundles are still to be done; `most` if there are more."""
    return sum(1 for _ in itertools.islice(in_bundles(todo), most))


def _next_bundle(
    todo: deque[Task], in_hand: Sequence[Task], deaths: Mapping[int, int], claim: Claim, unfinished: set[int]
) -> Sequence[Task]:
    """Take the tasks to give to a worker next. Those that other parts have claimed leave `unfinished`.

    A shard whose worker died is given out alone, so that a second death can only be that shard's fault.
    """
    while todo and not any(deaths.get(task.shard) for task in in_hand):
        bundle = [todo[0]]
        if not deaths.get(todo[0].shard):
            bundle = [task for task in next(in_bundles(todo)) if not deaths.get(task.shard)]
        elif in_hand:
            break
        for task in bundle:
            todo.remove(task)
        claimed = claim(bundle)
        unfinished -= {task.shard for task in bundle} - {task.shard for task in claimed}
        if claimed:
            return claimed
    return []


def _without_deadly_cuts(trials: Trials, task: Task, ending: str) -> Task:
    """The task without the cuts that killed its workers."""
    try:
        deadly = find_deadly_cuts(trials, trials.count) if not task.left_out else {}
    finally:
        trials.close()
    if not deadly:
        raise WorkerDied(
            f"shard {task.shard} killed {MAX_DEATHS} workers (the last by {ending}), but none of its cuts does so "
            "alone. Finished shards are kept: run the same command with fewer --workers, or with another OUT "
            "and fewer --batch-seconds"
        )
    return replace(task, left_out=deadly)


Kills = Callable[[Sequence[int]], str | None]
"""Gives a worker only these cuts of the shard, and says in words how the worker died; None: it survived."""


def find_deadly_cuts(kills: Kills, count: int) -> dict[int, str]:
    """The cuts of a shard that kill a worker alone, and how it ends; found by bisection, in workers that may die.

    Empty when a worker dies even without any cut: then the batches are too large for the machine, or the codec is at
    fault. That is tried twice, because workers also die for reasons outside the shard.

    Args:
        count: cuts of the shard, which together are known to kill workers.
    """
    if kills(()) is not None and kills(()) is not None:
        return {}
    return _search(kills, range(count))


def _search(kills: Kills, cuts: Sequence[int]) -> dict[int, str]:
    """The deadly ones among cuts that killed a worker together."""
    if len(cuts) == 1:
        ending = kills(cuts)
        return {} if ending is None else {cuts[0]: ending}
    middle, found = len(cuts) // 2, {}
    for half in (cuts[:middle], cuts[middle:]):
        if kills(half) is not None:
            found.update(_search(kills, half))
    return found


class Trials:
    """Tries cuts of one shard in workers that may die; callable as `Kills`.

    Args:
        hire: starts a worker.
        task: the shard.
        count: its cuts.
    """

    def __init__(self, hire: Callable[[], Worker], task: Task, count: int) -> None:
        self._hire, self._task, self.count = hire, task, count
        self._worker: Worker | None = None
        self._closed = False
        self._lock = threading.Lock()

    def __call__(self, cuts: Sequence[int]) -> str | None:
        left_out = dict.fromkeys(set(range(self.count)) - set(cuts), "not tried")
        while True:
            with self._lock:
                if self._closed:
                    raise InterruptedError("the run has ended")
                worker = self._worker = self._worker or self._hire()
            worker.take([replace(self._task, left_out=left_out, is_trial=True, keeps_tokens=False)])
            while (event := worker.event()) is not None:
                if isinstance(event, Survived):
                    return None
            self._worker = None
            ending = worker.ending()
            if ending is not None and not self._closed:
                return ending

    def close(self) -> None:
        """End the trial that runs in another thread, if there is one, and allow no further one."""
        with self._lock:
            self._closed = True
            if self._worker is not None:
                self._worker.stop()
