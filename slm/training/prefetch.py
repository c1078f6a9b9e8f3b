"""Batches made by a thread while the step before runs."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol

AHEAD = 2  # batches that are ready or being made, beside the one in use


class Batches(Protocol):
    """What makes the batch of a step from its number alone."""

    def batch(self, step: int) -> Any: ...


class Prefetched:
    """The same batches as those it is given, made ahead by one thread. To be used in a `with` block.

    Args:
        batches: used by the thread alone from now on.
        steps: no batch is made ahead for a step from this one on.
    """

    def __init__(self, batches: Batches, steps: int) -> None:
        self._batches, self._steps = batches, steps
        self._thread = ThreadPoolExecutor(1, "batches")
        self._made: dict[int, Future[Any]] = {}

    def __enter__(self) -> Prefetched:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def batch(self, step: int) -> Any:
        """The batch of a step; those of the next steps are begun. Raises what making it raises."""
        wanted = range(step, max(step + 1, min(step + 1 + AHEAD, self._steps)))
        for old in self._made.keys() - set(wanted):
            self._made.pop(old).cancel()
        for number in wanted:
            if number not in self._made:
                self._made[number] = self._thread.submit(self._batches.batch, number)
        return self._made.pop(step).result()
