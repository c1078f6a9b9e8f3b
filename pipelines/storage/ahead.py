"""Requests that wait for a store, several at once, with their answers in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], at_a_time: int) -> Iterator[Result]:
    """`work(item)` of every item, lazily and in order; `at_a_time` run in threads. Errors are raised in their turn."""
    with ThreadPoolExecutor(at_a_time, thread_name_prefix="read-ahead") as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > at_a_time:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
