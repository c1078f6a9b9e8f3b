"""The order of the documents in an epoch, and where in it a token lies, in 4 bytes a document.

A corpus of 10^8 cuts is read by eight processes of a machine, each with its own order, so this has to be small: where
each document ends is not kept, but worked out for the few blocks of documents that are asked for.
"""

from __future__ import annotations

import numpy as np

BLOCK = 256  # documents
AT_ONCE = 1 << 20  # documents that are sorted or looked up together; bounds the memory of intermediate arrays


class Epoch:
    """The documents of an epoch in an order drawn from a key.

    Args:
        tokens: unsigned integers [N], tokens of each document before the shuffle; kept, not copied.
        key: of the order.
    """

    def __init__(self, tokens: np.ndarray, *key: int) -> None:
        self._tokens, self._order = tokens, shuffled(len(tokens), *key)
        sums = []
        for begin in range(0, len(tokens), AT_ONCE):
            some = tokens[self._order[begin : begin + AT_ONCE]]
            sums.append(np.add.reduceat(some, np.arange(0, len(some), BLOCK), dtype=np.int64))
        self._block_ends = np.cumsum(np.concatenate(sums))  # tokens up to the end of each block
        self.tokens = int(self._block_ends[-1])

    def __len__(self) -> int:
        return len(self._order)

    def documents(self, begin: int, end: int) -> tuple[int, np.ndarray, np.ndarray]:
        """The documents that tokens `begin` .. `end` - 1 of the epoch lie in.

        Returns:
            the place in the order of the first; uint32 [n], their numbers before the shuffle; int64 [n], the tokens of
            the epoch where they begin.
        """
        assert 0 <= begin < end <= self.tokens
        first_block, last_block = np.searchsorted(self._block_ends, (begin, end - 1), side="right").tolist()
        numbers = self._order[first_block * BLOCK : (last_block + 1) * BLOCK]
        lengths = self._tokens[numbers].astype(np.int64)
        ends = np.cumsum(lengths) + (self._block_ends[first_block - 1] if first_block else 0)
        first, last = np.searchsorted(ends, (begin, end - 1), side="right").tolist()
        chosen = slice(first, last + 1)
        return first_block * BLOCK + first, numbers[chosen], ends[chosen] - lengths[chosen]


def shuffled(count: int, *key: int) -> np.ndarray:
    """A permutation of 0 .. count - 1, uint32, that depends on the key alone.

    By sorting raw random words: numpy promises that they stay the same in later versions, but not its `permutation`.
    """
    assert count < 1 << 32
    words = np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
    # Sorted range by range, each of about `AT_ONCE` words: all at once needs three times the memory of the words.
    bits = min(8, max(0, (count // AT_ONCE).bit_length()))
    if not bits:
        return np.argsort(words, kind="stable").astype(np.uint32)
    ranges, order, filled = np.empty(count, np.uint8), np.empty(count, np.uint32), 0
    np.right_shift(words, np.uint64(64 - bits), out=ranges, casting="unsafe")
    for number in range(1 << bits):
        members = np.flatnonzero(ranges == number)
        order[filled : filled + len(members)] = members[np.argsort(words[members], kind="stable")]
        filled += len(members)
    return order
