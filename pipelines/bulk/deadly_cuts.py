"""Which cuts of a shard bring a worker down: by halves, each tried in a worker that may die of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from pipelines.bulk.worker_process import Survived, Task, Worker

Kills = Callable[[Sequence[int]], str | None]
"""How a worker ends that touches only these cuts of the shard, in words; None: it survives."""


def find_deadly_cuts(kills: Kills, count: int) -> dict[int, str]:
    """The cuts of a shard that are deadly by themselves, and how.

    None when the shard without any of them is deadly too: then its batches are too large for the machine, or the codec
    is at fault, and no cut. What is found so is tried a second time: workers also die of what is no cut's doing.

    Args:
        count: cuts of the shard, which are known to kill together.
    """
    if kills(()) is not None and kills(()) is not None:
        return {}
    return _search(kills, range(count))


def _search(kills: Kills, cuts: Sequence[int]) -> dict[int, str]:
    """The deadly ones among cuts that killed together."""
    if len(cuts) == 1:
        ending = kills(cuts)
        return {} if ending is None else {cuts[0]: ending}
    middle, found = len(cuts) // 2, {}
    for half in (cuts[:middle], cuts[middle:]):
        if kills(half) is not None:
            found.update(_search(kills, half))
    return found


class Trials:
    """Tries cuts of one shard in workers, which may die of it. Made to be called as `Kills`.

    Args:
        hire: a new worker.
        count: cuts of the shard.
    """

    def __init__(self, hire: Callable[[], Worker], shard: int, count: int) -> None:
        self._hire, self._shard, self.count = hire, shard, count
        self._worker: Worker | None = None
        self._closed = False
        self._lock = threading.Lock()

    def __call__(self, cuts: Sequence[int]) -> str | None:
        left_out = dict.fromkeys(set(range(self.count)) - set(cuts), "not tried")
        while True:
            with self._lock:
                if self._closed:
                    raise InterruptedError("the run is over")
                worker = self._worker = self._worker or self._hire()
            worker.take(Task(self._shard, left_out, is_trial=True))
            while (event := worker.event()) is not None:
                if isinstance(event, Survived):
                    return None
            self._worker = None
            ending = worker.ending()
            if ending is not None and not self._closed:
                return ending

    def close(self) -> None:
        """End the trial that is going on in another thread, if there is one, and let none begin."""
        with self._lock:
            self._closed = True
            if self._worker is not None:
                self._worker.stop()
