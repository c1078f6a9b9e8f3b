"""Batches for language model training: the position of every token is arithmetic, so resuming needs one integer.

Each cut becomes a document: begin id, its codes, end id. An epoch is all documents in an order drawn from (seed,
epoch); the epochs one after another are one endless virtual stream. Row r of `row_tokens` inputs and as many targets
is the stretch [r * row_tokens, (r + 1) * row_tokens] of it: neighbouring rows share one token, the last target of one
being the first input of the next, so each token is an input exactly once and a target exactly once an epoch, and
nothing is dropped. Step k takes rows [k * rows, (k + 1) * rows), divided among the ranks in order: the global batch is
the same for any number of ranks. A document that is cut by the end of a row continues in the next row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from pipelines.dataset.epochs import Epoch, shuffled
from tokenizer.errors import InputError

EPOCHS_HELD = 2  # a row can begin in one epoch and end in the next
TOKENS_AT_ONCE = 65_536  # so that the arrays between dataset and batch stay in a core's caches
HELD_OUT_STREAM = 1  # keeps the draw of the held-out cuts apart from that of the epochs


class Codes(Protocol):
    """The part of `TokenDataset` that the loader needs."""

    lengths: np.ndarray  # int64 [N]

    def gather(self, cuts: np.ndarray, before: int = 0, after: int = 0) -> np.ndarray: ...


class Documents(Protocol):
    """What a cut is in the stream."""

    def lengths(self, dataset: Codes) -> np.ndarray:
        """int64 [N]: ids of each cut's document. From the index alone: no codes are read."""

    def ids(self, dataset: Codes, cuts: np.ndarray) -> np.ndarray:
        """The documents of `cuts`, one after another: integers [n]."""


@dataclass(frozen=True)
class Framing:
    """`Documents` of speech alone: the begin id, the codes of the cut, the end id."""

    begin: int
    end: int
    first_code: int  # the id of code 0

    def lengths(self, dataset: Codes) -> np.ndarray:
        return dataset.lengths + 2

    def ids(self, dataset: Codes, cuts: np.ndarray) -> np.ndarray:
        ids = np.add(dataset.gather(cuts, before=1, after=1), self.first_code, dtype=np.int32)
        ends = np.cumsum(dataset.lengths[cuts] + 2)
        ids[ends - 1] = self.end
        ids[0], ids[ends[:-1]] = self.begin, self.begin
        return ids


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
        framing: Documents,
        rows: int,
        row_tokens: int,
        seed: int,
        cuts: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        # 4 bytes a cut for each of the cuts, their tokens and the epoch's order.
        self._cuts = np.arange(len(dataset.lengths), dtype=np.uint32) if cuts is None else cuts.astype(np.uint32)
        if len(self._cuts) == 0:
            raise InputError("the dataset has no cuts to make batches of; tokenize some audio first")
        self.row_tokens = row_tokens
        self._dataset = dataset
        self._framing = framing
        self._seed = seed
        self._rows, self._rank, self._world_size = rows, rank, world_size
        ranks_rows(rows, 0, rank, world_size)  # refuses what cannot be divided before the first step
        self._document_tokens = framing.lengths(dataset)[self._cuts].astype(np.uint32)
        self.tokens_per_epoch = int(self._document_tokens.sum())
        self._epochs: dict[int, Epoch] = {}

    @property
    def documents_per_epoch(self) -> int:
        """Documents numbered below this belong to epoch 0."""
        return len(self._cuts)

    @property
    def rows_per_epoch(self) -> int:
        """Rows that hold every token of epoch 0 (the last of them ends in epoch 1)."""
        return -(-self.tokens_per_epoch // self.row_tokens)

    def batch(self, step: int) -> Batch:
        """The rows of this rank at a step (counted from 0); no earlier step has to be asked for.

        Raises:
            InputError: the dataset is damaged; see `TokenDataset.gather`.
        """
        return self.rows(*ranks_rows(self._rows, step, self._rank, self._world_size))

    def rows(self, first: int, last: int) -> Batch:
        """Rows first .. last - 1 of the stream."""
        earlier = [epoch for epoch in self._epochs if epoch < self._place(first * self.row_tokens)[0]]
        for epoch in earlier:  # rows are usually asked for in order
            del self._epochs[epoch]
        # One block, which the allocator keeps from step to step; three would be returned and page-faulted in again.
        batch = Batch(*np.empty((3, last - first, self.row_tokens + 1), np.int64))
        at_once = max(1, TOKENS_AT_ONCE // self.row_tokens)
        for begin in range(first, last, at_once):
            end = min(begin + at_once, last)
            self._fill(Batch(*(field[begin - first : end - first] for field in batch)), begin * self.row_tokens)
        return batch

    def _fill(self, rows: Batch, start: int) -> None:
        """Write the stream from token `start` on into rows. The last token of a row is the first of the next."""
        stretches = list(self._stretches(start, rows.tokens.shape[0] * self.row_tokens + 1))
        for field, parts in zip(rows, zip(*stretches, strict=True), strict=True):
            stretch = parts[0] if len(parts) == 1 else np.concatenate(parts)
            field[:, :-1], field[:, -1] = (
                stretch[:-1].reshape(-1, self.row_tokens),
                stretch[self.row_tokens :: self.row_tokens],
            )

    def _stretches(self, start: int, count: int) -> Iterator[Batch]:
        """The stream's tokens [start, start + count), epoch by epoch, each field one-dimensional."""
        while count:
            number, offset = self._place(start)
            epoch = self._epoch(number)
            end = min(offset + count, epoch.tokens)
            first, documents, begins = epoch.documents(offset, end)
            shown = np.diff(np.append(begins, end).clip(offset))  # tokens of each document that lie in the stretch
            ids = self._documents(number).ids(self._dataset, self._cuts[documents])
            ids = ids[offset - begins[0] :][: end - offset]
            numbers = np.repeat(np.arange(first, first + len(documents)) + number * len(epoch), shown)
            positions = np.arange(end - offset, dtype=np.int32)
            positions -= np.repeat((begins - offset).astype(np.int32), shown)
            yield Batch(ids, numbers, positions)
            start, count = start + end - offset, count - (end - offset)

    def _epoch(self, epoch: int) -> Epoch:
        if epoch not in self._epochs:
            if len(self._epochs) == EPOCHS_HELD:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = Epoch(self._tokens(epoch).astype(np.uint32, copy=False), self._seed, epoch)
        return self._epochs[epoch]

    # The next three are the same in each epoch here; a subclass may have other documents in each.

    def _documents(self, epoch: int) -> Documents:
        """What the cuts are in an epoch."""
        return self._framing

    def _tokens(self, epoch: int) -> np.ndarray:
        """Tokens of each of the documents of an epoch, before they are shuffled."""
        return self._document_tokens

    def _place(self, token: int) -> tuple[int, int]:
        """The epoch that a token of the stream belongs to, and its place there."""
        return divmod(token, self.tokens_per_epoch)


def ranks_rows(rows: int, step: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and last + 1 of a rank's rows at a step of `rows` rows in all. Raises InputError."""
    assert 0 <= rank < world_size
    if rows % world_size:
        raise InputError(f"{rows} rows per step cannot be divided among {world_size} ranks; use a multiple")
    first = step * rows + rank * (rows // world_size)
    return first, first + rows // world_size


def split_held_out(count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut numbers for training and for validation, each sorted: `fraction` of them, at least one, is held out.

    Raises:
        InputError: fewer than two cuts, which leaves one of the two empty.
    """
    if count < 2:
        raise InputError(f"the dataset has {count} cuts: too few to hold one out for validation; give more audio")
    held_out = min(count - 1, max(1, round(count * fraction)))
    order = shuffled(count, seed, 0, HELD_OUT_STREAM).astype(np.int64)
    return np.sort(order[held_out:]), np.sort(order[:held_out])
