"""What the codec is given is a function of the lengths alone, and holds every sample of every cut once."""

import numpy as np
import pytest

from pipelines.bulk.feed.batches import BatchRules, steps, windows

RULES = BatchRules(batch=300, longest=60, window=40, chunk=8, long_rows=3)


def lengths(seed: int, count: int, most: int) -> list[int]:
    return [int(n) for n in np.random.default_rng(seed).integers(0, most, count)]


@pytest.mark.parametrize("long_rows", [1, 3, 100])
def test_every_sample_once_and_streams_in_order(long_rows):
    samples = lengths(0, 40, 500)
    rules = BatchRules(300, 60, 40, 8, long_rows)
    ends, rows_of = dict.fromkeys(range(40), 0), {}
    for step in steps(samples, rules, lambda i: True):
        rows, width = step.shape
        assert rows * width <= rules.most
        for row, piece in enumerate(step.pieces):
            assert piece.begin == ends[piece.cut] and piece.samples <= width
            assert rows_of.setdefault(piece.cut, row) == row or not step.streams
            ends[piece.cut] += piece.samples
    assert list(ends.values()) == samples


def test_rows_of_streams_are_never_fewer_than_later_on():
    counts = [step.shape[0] for step in windows(range(10), lengths(1, 10, 2000), RULES, lambda i: True)]
    assert counts[0] == 3 and counts == sorted(counts, reverse=True)


def test_what_nobody_needs_costs_no_steps_and_moves_no_others():
    samples = [10**15, 333, 700, 90, 10**14]  # a manifest may claim 32 million years
    everything = list(steps(samples[1:4], RULES, lambda i: True))
    assert len(everything) > 10
    rules = BatchRules(300, 60, 40, 8, long_rows=5)
    kept = list(steps(samples, rules, lambda i: i in (1, 2, 3)))
    assert {piece.cut for step in kept for piece in step.pieces if piece.begin} >= {1, 2, 3}
    alone = list(steps(samples, rules, lambda i: i == 3))
    assert alone == kept[: len(alone)] and len(alone) == 3  # 90 samples are three windows


def test_a_long_cut_that_fails_is_left_alone():
    failed, taken = set(), 0
    for _ in windows([0], [10**15], RULES, lambda i: i not in failed):
        taken += 1
        failed.add(0)
    assert taken == 1
