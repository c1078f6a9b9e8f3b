"""Which cuts of a shard bring a worker down: by halves, each tried in a worker of its own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

from pipelines.worker_process import ShardWork, Survived, Task, Worker

Kills = Callable[[Sequence[int]], str | None]
"""How a worker ends that touches only these cuts of the shard, in words; None: it survives."""


def find_deadly_cuts(kills: Kills, count: int, ending: str) -> dict[int, str]:
    """The cuts of a shard that are deadly by themselves, and how.

    None when the shard without any of them is deadly too: then its batches are too large for the machine, or the codec
    is at fault, and no cut.

    Args:
        count: cuts of the shard, which are known to kill together, by `ending`.
    """
    return {} if kills(()) is not None else _search(kills, range(count), ending)


def _search(kills: Kills, cuts: Sequence[int], ending: str) -> dict[int, str]:
    """The deadly ones among cuts that kill together."""
    if len(cuts) == 1:
        return {cuts[0]: ending}
    middle, found = len(cuts) // 2, {}
    for half in (cuts[:middle], cuts[middle:]):
        half_ending = kills(half)
        if half_ending is not None:
            found.update(_search(kills, half, half_ending))
    return found


class Trials:
    """Tries cuts of one shard in worker processes, which may die of it. Made to be called as `Kills`."""

    def __init__(self, work: ShardWork, shard: int, count: int) -> None:
        self._work, self._shard, self._count = work, shard, count
        self._worker: Worker | None = None

    def __call__(self, cuts: Sequence[int]) -> str | None:
        self._worker = self._worker or Worker(self._work)
        left_out = dict.fromkeys(set(range(self._count)) - set(cuts), "not tried")
        self._worker.take(Task(self._shard, left_out, is_trial=True))
        while (event := self._worker.event()) is not None:
            if isinstance(event, Survived):
                return None
        ending = describe_end(self._worker)
        self._worker = None
        return ending

    def close(self) -> None:
        if self._worker is not None:
            self._worker.stop()


def describe_end(worker: Worker) -> str:
    """How a dead worker ended, for people. It is waited for."""
    worker.process.join()
    worker.link.close()
    code = worker.process.exitcode
    if code is None or code >= 0:
        return f"exit code {code}; 1 is usually memory that could not be had"
    why = {signal.SIGKILL: "; usually the kernel out of memory", signal.SIGSEGV: "; a crash in a native library"}
    return f"{signal.Signals(-code).name}{why.get(signal.Signals(-code), '')}"
