"""The packed loader: every token once, the same for any number of ranks and any resume point."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.dataset.batches import Batch, Framing, PackedBatches, split_held_out
from pipelines.dataset.epochs import shuffled
from tokenizer.errors import InputError

FRAMING = Framing(begin=1, end=2, first_code=16)


class Cuts:
    """A dataset in memory; among the cuts are an empty one, a single token, and some longer than any row."""

    codebook_size = 65536

    def __init__(self, seed: int, count: int = 40) -> None:
        random = np.random.default_rng(seed)
        self.lengths = random.integers(0, 60, count)
        self.lengths[:4] = 0, 1, 300, 501
        self._codes = [random.integers(0, 65536, n).astype(np.uint16) for n in self.lengths]

    def gather(self, cuts: np.ndarray, before: int = 0, after: int = 0) -> np.ndarray:
        return np.concatenate([np.pad(self._codes[i], (before, after)) for i in cuts])

    def document(self, i: int) -> list[int]:
        return [1, *(int(code) + 16 for code in self._codes[i]), 2]


def batches(dataset: Cuts, **options: Any) -> PackedBatches:
    return PackedBatches(dataset, FRAMING, **{"rows": 8, "row_tokens": 33, "seed": 5, **options})


def joined(parts: list[Batch]) -> Batch:
    return Batch(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def assert_equal(left: Batch, right: Batch) -> None:
    for name in Batch._fields:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


def obvious_rows(cuts: Cuts, seed: int, first: int, last: int, row_tokens: int) -> Batch:
    """The slow version: the stream token by token."""
    stream: list[tuple[int, int, int]] = []
    epoch = 0
    while len(stream) < last * row_tokens + 1:
        for i in shuffled(len(cuts.lengths), seed, epoch):
            number = stream[-1][1] + 1 if stream else 0
            stream += [(token, number, position) for position, token in enumerate(cuts.document(i))]
        epoch += 1
    rows = [stream[row * row_tokens : (row + 1) * row_tokens + 1] for row in range(first, last)]
    return Batch(*np.moveaxis(np.array(rows, np.int64), -1, 0))


@pytest.mark.parametrize("row_tokens", [1, 7, 33, 512])
def test_rows_are_those_of_the_obvious_version(row_tokens, monkeypatch):
    monkeypatch.setattr("pipelines.dataset.batches.TOKENS_AT_ONCE", 100)
    cuts = Cuts(seed=11)
    loader = batches(cuts, row_tokens=row_tokens)
    last = 2 * loader.rows_per_epoch + 3
    for first in (0, 1, loader.rows_per_epoch - 1):
        assert_equal(loader.rows(first, last), obvious_rows(cuts, 5, first, last, row_tokens))


def test_every_token_is_an_input_and_a_target_exactly_once_an_epoch():
    cuts = Cuts(seed=0)
    loader = batches(cuts)
    epochs = 3
    row_count = -(-epochs * loader.tokens_per_epoch // loader.row_tokens)
    rows = loader.rows(0, row_count)
    end = epochs * loader.tokens_per_epoch
    inputs, documents = rows.tokens[:, :-1].ravel()[:end], rows.documents[:, :-1].ravel()[:end]
    np.testing.assert_array_equal(rows.tokens[:, 1:].ravel()[: end - 1], inputs[1:])
    assert (np.diff(documents) >= 0).all()
    for epoch in range(epochs):
        seen = [
            inputs[documents == number].tolist()
            for number in range(epoch * len(cuts.lengths), (epoch + 1) * len(cuts.lengths))
        ]
        assert sorted(seen) == sorted(cuts.document(i) for i in range(len(cuts.lengths)))


def test_epochs_differ_in_order_and_seeds_too():
    cuts = Cuts(seed=1)
    first = batches(cuts).rows(0, 20).tokens
    loader = batches(cuts, row_tokens=batches(cuts).tokens_per_epoch)
    assert not np.array_equal(loader.rows(0, 1).tokens, loader.rows(1, 2).tokens)
    assert not np.array_equal(first, batches(cuts, seed=6).rows(0, 20).tokens)


def test_documents_and_positions_follow_the_cuts():
    cuts = Cuts(seed=2)
    rows = batches(cuts).rows(0, 60)
    for tokens, documents, positions in zip(*rows, strict=True):
        new = np.flatnonzero(np.diff(documents)) + 1
        np.testing.assert_array_equal(tokens[new], 1)
        np.testing.assert_array_equal(tokens[new - 1], 2)
        np.testing.assert_array_equal(positions[new], 0)
        same = np.diff(documents) == 0
        np.testing.assert_array_equal(np.diff(positions)[same], 1)
        np.testing.assert_array_equal(positions == 0, tokens == 1)


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(world_size):
    cuts = Cuts(seed=3)
    alone = batches(cuts)
    ranks = [batches(cuts, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in range(25):
        assert_equal(alone.batch(step), joined([rank.batch(step) for rank in ranks]))


def test_a_step_does_not_depend_on_the_steps_before_it():
    cuts = Cuts(seed=4)
    steady = batches(cuts)
    expected = [steady.batch(step) for step in range(60)]
    random = np.random.default_rng(4)
    wandering = batches(cuts)
    for step in random.permutation(60):
        assert_equal(wandering.batch(int(step)), expected[step])
    for step in random.choice(60, 5, replace=False):
        assert_equal(batches(cuts).batch(int(step)), expected[step])


def test_interrupted_anywhere_on_one_two_and_one_rank_the_batches_are_those_of_an_undisturbed_run():
    cuts = Cuts(seed=9)
    steady = batches(cuts)
    expected = [steady.batch(step) for step in range(120)]
    stops = np.sort(np.random.default_rng(9).choice(np.arange(1, 120), 20, replace=False)).tolist()
    for resumed, (begin, end) in enumerate(zip([0, *stops], [*stops, 120], strict=True)):
        world_size = 1 + resumed % 2
        ranks = [batches(cuts, rank=rank, world_size=world_size) for rank in range(world_size)]
        for step in range(begin, end):
            assert_equal(joined([rank.batch(step) for rank in ranks]), expected[step])


def test_a_row_may_span_several_epochs_of_a_tiny_dataset():
    cuts = Cuts(seed=5, count=5)
    cuts.lengths[2:4] = 3
    cuts._codes[2:4] = [codes[:3] for codes in cuts._codes[2:4]]
    loader = batches(cuts, row_tokens=4 * int((cuts.lengths + 2).sum()) + 1)
    row = loader.rows(1, 2)
    stretch = batches(cuts, row_tokens=1).rows(loader.row_tokens, 2 * loader.row_tokens + 1)
    np.testing.assert_array_equal(row.tokens[0], stretch.tokens[:, 0])
    np.testing.assert_array_equal(row.documents[0], stretch.documents[:, 0])


def test_a_chosen_subset_is_all_that_appears():
    cuts = Cuts(seed=6)
    training, held_out = split_held_out(len(cuts.lengths), 0.2, seed=5)
    assert len(held_out) == 8
    assert sorted([*training, *held_out]) == list(range(len(cuts.lengths)))
    loader = batches(cuts, cuts=held_out)
    rows = loader.rows(0, loader.rows_per_epoch)
    own = rows.documents[:, :-1] < loader.documents_per_epoch
    assert own.sum() == sum(len(cuts.document(i)) for i in held_out)
    first_codes = {tuple(cuts.document(i)) for i in held_out}
    inputs, documents = rows.tokens[:, :-1][own], rows.documents[:, :-1][own]
    assert {tuple(inputs[documents == number]) for number in range(len(held_out))} == first_codes


def test_the_order_is_pinned():
    """A later version must resume older runs: these numbers may not change."""
    assert shuffled(10, 123, 4).tolist() == [9, 3, 1, 4, 5, 6, 7, 8, 0, 2]


def test_bad_input_is_refused():
    cuts = Cuts(seed=8)
    with pytest.raises(InputError, match="8 rows per step cannot be divided among 3"):
        batches(cuts, rank=0, world_size=3)
    with pytest.raises(InputError, match="no cuts"):
        batches(cuts, cuts=np.zeros(0, np.int64))
    with pytest.raises(InputError, match="1 cuts: too few"):
        split_held_out(1, 0.1, seed=0)
