"""The order of an epoch, made range by range and looked up block by block, is that of the obvious version."""

from __future__ import annotations

import numpy as np
import pytest

import pipelines.dataset.epochs as epochs
from pipelines.dataset.epochs import Epoch, shuffled


@pytest.mark.parametrize("count", [0, 1, 99, 100, 5_000, 60_000])
def test_a_shuffle_range_by_range_is_one_sort(count, monkeypatch):
    monkeypatch.setattr(epochs, "AT_ONCE", 100)
    words = np.random.Philox(np.random.SeedSequence((3, 4))).random_raw(count)
    np.testing.assert_array_equal(shuffled(count, 3, 4), np.argsort(words, kind="stable"))


def test_documents_are_found_where_their_tokens_lie(monkeypatch):
    monkeypatch.setattr(epochs, "BLOCK", 3)
    monkeypatch.setattr(epochs, "AT_ONCE", 6)  # a multiple of a block
    random = np.random.default_rng(0)
    tokens = random.integers(1, 9, 40).astype(np.uint8)
    epoch, order = Epoch(tokens, 7, 1), shuffled(40, 7, 1)
    begins = np.cumsum(tokens[order], dtype=np.int64) - tokens[order]
    assert epoch.tokens == tokens.sum(dtype=np.int64) and len(epoch) == 40
    for _ in range(300):
        begin, end = np.sort(random.choice(epoch.tokens + 1, 2, replace=False)).tolist()
        first, numbers, starts = epoch.documents(begin, end)
        last = int(np.searchsorted(begins, end - 1, side="right")) - 1
        assert first == int(np.searchsorted(begins, begin, side="right")) - 1
        np.testing.assert_array_equal(numbers, order[first : last + 1])
        np.testing.assert_array_equal(starts, begins[first : last + 1])
