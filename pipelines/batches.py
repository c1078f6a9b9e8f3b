"""Batches for language model training: which token falls where is arithmetic, so resuming needs one integer.

Each cut becomes a document: begin id, its codes, end id. An epoch is all documents in an order drawn from (seed,
epoch); the epochs one after another are one endless virtual stream. Row r of `row_tokens` inputs and as many targets
is the stretch [r * row_tokens, (r + 1) * row_tokens] of it: neighbouring rows share one token, the last target of one
being the first input of the next, so each token is an input exactly once and a target exactly once an epoch, and
nothing is dropped. Step k takes rows [k * rows, (k + 1) * rows), divided among the ranks in order: the global batch is
the same for any number of ranks. Documents that a row's end cuts go on in the next row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from tokenizer.errors import InputError

EPOCHS_HELD = 2  # a row can begin in one epoch and end in the next
HELD_OUT_STREAM = 1  # keeps the draw of the held-out cuts apart from that of the epochs


class Codes(Protocol):
    """What the loader needs of `pipelines.dataset.TokenDataset`."""

    lengths: np.ndarray  # int64 [N]

    @property
    def codebook_size(self) -> int: ...

    def codes(self, i: int, /) -> np.ndarray: ...  # uint16 [T]


@dataclass(frozen=True)
class Framing:
    """The ids of the stream: a document's begin and end, and where code 0 lies."""

    begin: int
    end: int
    first_code: int


class Batch(NamedTuple):
    """The rows of one rank at one step, each int64 [rows, row_tokens + 1]; inputs are [:, :-1], targets [:, 1:]."""

    tokens: np.ndarray
    documents: np.ndarray  # counts documents through all epochs; tokens of different ones must not see each other
    positions: np.ndarray  # of the token in its document: 0 is the begin id


class PackedBatches:
    """The batches of one rank.

    Args:
        dataset: the tokenized cuts.
        framing: the ids of the stream.
        rows: rows of a step over all ranks.
        row_tokens: inputs per row.
        seed: of the order of the cuts.
        cuts: int64 [n], the cuts that take part; None: all.
        rank, world_size: this process among those that share each step.

    Raises:
        InputError: no cuts, or rows that cannot be divided among the ranks.
    """

    def __init__(
        self,
        dataset: Codes,
        framing: Framing,
        rows: int,
        row_tokens: int,
        seed: int,
        cuts: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert 0 <= rank < world_size
        self._cuts = np.arange(len(dataset.lengths)) if cuts is None else cuts
        if len(self._cuts) == 0:
            raise InputError("the dataset has no cuts to make batches of; tokenize some audio first")
        if rows % world_size:
            raise InputError(f"{rows} rows per step cannot be divided among {world_size} ranks; use a multiple")
        self.row_tokens = row_tokens
        self._dataset = dataset
        self._framing = framing
        self._rows = rows
        self._seed = seed
        self._rank, self._rank_rows = rank, rows // world_size
        self._document_tokens = dataset.lengths[self._cuts] + 2
        self.tokens_per_epoch = int(self._document_tokens.sum())
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def documents_per_epoch(self) -> int:
        """Documents numbered below this belong to epoch 0."""
        return len(self._cuts)

    @property
    def rows_per_epoch(self) -> int:
        """Rows that hold every token of epoch 0 (the last of them ends in epoch 1)."""
        return -(-self.tokens_per_epoch // self.row_tokens)

    def batch(self, step: int) -> Batch:
        """What this rank sees at a step (counted from 0), whatever was asked for before.

        Raises:
            InputError: a code beyond the codebook, which only a damaged dataset has.
        """
        first = step * self._rows + self._rank * self._rank_rows
        return self.rows(first, first + self._rank_rows)

    def rows(self, first: int, last: int) -> Batch:
        """Rows first .. last - 1 of the stream."""
        batch = Batch(*(np.empty((last - first, self.row_tokens + 1), np.int64) for _ in Batch._fields))
        for row in range(first, last):
            column = 0
            for tokens, document, position in self._pieces(row * self.row_tokens, self.row_tokens + 1):
                here = (row - first, slice(column, column + len(tokens)))
                batch.tokens[here] = tokens
                batch.documents[here] = document
                batch.positions[here] = np.arange(position, position + len(tokens))
                column += len(tokens)
        return batch

    def _pieces(self, start: int, count: int) -> Iterator[tuple[np.ndarray, int, int]]:
        """The stream's tokens [start, start + count) by document: (ids, document, position of the first id)."""
        epoch, offset = divmod(start, self.tokens_per_epoch)
        order, ends = self._epoch(epoch)
        at = int(np.searchsorted(ends, offset, side="right"))
        while count:
            if at == len(order):
                epoch, at, offset = epoch + 1, 0, 0
                order, ends = self._epoch(epoch)
            position = offset - (int(ends[at - 1]) if at else 0)
            ids = self._document(int(order[at]))[position : position + count]
            yield ids, epoch * len(order) + at, position
            offset, at, count = offset + len(ids), at + 1, count - len(ids)

    def _document(self, cut: int) -> np.ndarray:
        codes = self._dataset.codes(cut)
        if codes.size and codes.max() >= self._dataset.codebook_size:
            raise InputError(
                f"cut {cut} of the dataset has code {codes.max()}, but its codebook has {self._dataset.codebook_size} "
                "codes; the dataset is damaged, find out where with `focalstream verify`"
            )
        ids = np.empty(len(codes) + 2, np.int64)
        ids[0], ids[-1] = self._framing.begin, self._framing.end
        ids[1:-1] = codes
        ids[1:-1] += self._framing.first_code
        return ids

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The cuts of an epoch in order, and where in the epoch each document ends."""
        if epoch not in self._epochs:
            order = shuffled(len(self._cuts), self._seed, epoch)
            if len(self._epochs) == EPOCHS_HELD:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = self._cuts[order], np.cumsum(self._document_tokens[order])
        return self._epochs[epoch]


def shuffled(count: int, *key: int) -> np.ndarray:
    """A permutation of 0 .. count - 1 that depends on the key alone.

    By sorting raw random words: numpy promises that they stay the same in later versions, but not its `permutation`.
    """
    words = np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(words, kind="stable")


def split_held_out(count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut numbers for training and for validation, each sorted: `fraction` of them, at least one, is held out.

    Raises:
        InputError: fewer than two cuts, which leaves one of the two empty.
    """
    if count < 2:
        raise InputError(f"the dataset has {count} cuts: too few to hold one out for validation; give more audio")
    held_out = min(count - 1, max(1, round(count * fraction)))
    order = shuffled(count, seed, 0, HELD_OUT_STREAM)
    return np.sort(order[held_out:]), np.sort(order[:held_out])
