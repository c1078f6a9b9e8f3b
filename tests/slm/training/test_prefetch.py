"""Batches made ahead are the batches of the steps, whatever is asked for next."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from pipelines.dataset.batches import Batch
from slm.training.prefetch import AHEAD, Prefetched


class Numbered:
    """A batch of its step's number; step 7 cannot be read."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.threads: set[int] = set()

    def batch(self, step: int) -> Batch:
        self.made.append(step)
        self.threads.add(threading.get_ident())
        if step == 7:
            raise OSError("damaged")
        return Batch(*np.full((3, 1, 1), step))


def value(batch: Any) -> int:
    return int(batch.tokens[0, 0])


def test_every_step_has_its_batch_made_once_by_one_other_thread():
    source = Numbered()
    with Prefetched(source, 5) as batches:
        assert [value(batches.batch(step)) for step in range(5)] == [0, 1, 2, 3, 4]
    assert source.made == [0, 1, 2, 3, 4] and len(source.threads) == 1
    assert threading.get_ident() not in source.threads


def test_a_jump_and_an_error_come_with_their_step():
    source = Numbered()
    with Prefetched(source, 100) as batches:
        assert value(batches.batch(20)) == 20
        assert value(batches.batch(5)) == 5
        assert value(batches.batch(6)) == 6
        with pytest.raises(OSError, match="damaged"):
            batches.batch(7)
        assert value(batches.batch(8)) == 8
    assert max(source.made) <= 20 + AHEAD


def test_steps_beyond_the_end_are_made_when_asked_for():
    with Prefetched(Numbered(), 3) as batches:
        assert value(batches.batch(4)) == 4
