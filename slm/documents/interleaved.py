"""Documents in which speech and text take turns, where the times of the words are known.

    <bos> <interleaved> <speech> codes <text> pieces <speech> codes ... <eos>

After SpiRit-LM (arXiv 2402.05755): each word of a cut is there once, as its codes or as its pieces, and the kind
changes between words. So the model has to go on in the one with what was said in the other. What is ours is the
first mark: the other tasks (`slm.documents.tasks`) use `<text>` and `<speech>` to ask for the same words once more, and
the model could not tell which is meant.

Where the kind changes is drawn anew for each epoch, and is a function of (seed, epoch, dataset) alone.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pipelines.dataset.batches import EPOCHS_HELD, Codes, Documents, PackedBatches
from slm.documents.word_times import Words
from slm.vocabulary import BOS, EOS, FIRST_CODE, INTERLEAVED, SPEECH, TEXT

SPAN_WORDS = 8  # between two changes, in the mean: each word but the first begins another kind with probability 1/8
FRAME = 3  # <bos>, <interleaved> and <eos>
TURNS_STREAM = 5  # keeps these draws apart from those of the order, which are of the same seed


@dataclass(frozen=True)
class InterleavedFraming:
    """`pipelines.dataset.batches.Documents` of one epoch."""

    first_piece: int  # the id of piece 0
    words: Words
    seed: int
    epoch: int = 0

    @cached_property
    def in_text(self) -> np.ndarray:
        """bool [W]: which words are pieces; the others are codes."""
        key = np.random.SeedSequence((self.seed, self.epoch, TURNS_STREAM))
        count = len(self.words.codes)
        draws = np.random.Philox(key).random_raw(-(-count // 8)).astype("<u8").view(np.uint8)[:count]
        changes = draws < 256 // SPAN_WORDS
        first = self._first_of_cut
        changes[first] = draws[first] < 128
        return np.logical_xor.accumulate(changes)  # a fair draw for a cut's first word, whatever was before

    @property
    def _first_of_cut(self) -> np.ndarray:
        return self.words.begins[:-1][self.words.counts > 0]

    def lengths(self, dataset: Codes) -> np.ndarray:
        begins_span = np.ones(len(self.in_text), bool)
        begins_span[1:] = self.in_text[1:] != self.in_text[:-1]
        begins_span[self._first_of_cut] = True
        ids = np.where(self.in_text, self.words.written, self.words.codes).astype(np.uint32)
        ids += begins_span
        lengths = np.full(len(self.words.counts), FRAME, np.int64)
        lengths[self.words.counts > 0] += np.add.reduceat(ids, self._first_of_cut, dtype=np.int64)
        return lengths

    def ids(self, dataset: Codes, cuts: np.ndarray) -> np.ndarray:
        codes = np.add(dataset.gather(cuts), FIRST_CODE, dtype=np.int32)
        spoken = np.split(codes, np.cumsum(dataset.lengths[cuts])[:-1])
        parts = []
        for cut, said in zip(cuts.tolist(), spoken, strict=True):
            parts += [np.array([BOS, INTERLEAVED], np.int32), *self._spans(cut, said), np.array([EOS], np.int32)]
        return np.concatenate(parts)

    def _spans(self, cut: int, said: np.ndarray) -> list[np.ndarray]:
        """Marks and what they open, in turn; `said` are the ids of the codes of the cut."""
        here = slice(*self.words.begins[cut : cut + 2].tolist())
        begin, end = self.words.piece_begins[cut : cut + 2]
        written = np.add(self.words.pieces[begin:end], self.first_piece, dtype=np.int32)
        in_text = self.in_text[here]
        codes_before, pieces_before = (
            np.concatenate([[0], np.cumsum(counts[here], dtype=np.int64)])
            for counts in (self.words.codes, self.words.written)
        )
        changes = np.flatnonzero(in_text[1:] != in_text[:-1]) + 1
        spans = []
        for first, last in itertools.pairwise([0, *changes.tolist(), len(in_text)]):
            if in_text[first]:
                spans += [np.array([TEXT], np.int32), written[pieces_before[first] : pieces_before[last]]]
            else:
                spans += [np.array([SPEECH], np.int32), said[codes_before[first] : codes_before[last]]]
        return spans


class InterleavedBatches(PackedBatches):
    """Batches of documents that are others in each epoch, and of other lengths; `tokens_per_epoch` is that of epoch 0.

    Where an epoch begins in the stream is the sum of those before it: a run that goes on in its epoch e counts the
    lengths of e epochs first, about a second for a million cuts in each.
    """

    def __init__(
        self,
        dataset: Codes,
        framing: InterleavedFraming,
        rows: int,
        row_tokens: int,
        seed: int,
        cuts: np.ndarray,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(dataset, framing, rows, row_tokens, seed, cuts, rank, world_size)
        self._template = framing
        self._framings: dict[int, InterleavedFraming] = {}
        self._epoch_begins = [0, self.tokens_per_epoch]

    def _documents(self, epoch: int) -> Documents:
        if epoch not in self._framings:
            if len(self._framings) == EPOCHS_HELD:
                del self._framings[next(iter(self._framings))]
            self._framings[epoch] = replace(self._template, epoch=epoch)
        return self._framings[epoch]

    def _tokens(self, epoch: int) -> np.ndarray:
        return self._documents(epoch).lengths(self._dataset)[self._cuts]

    def _place(self, token: int) -> tuple[int, int]:
        while self._epoch_begins[-1] <= token:
            tokens = self._tokens(len(self._epoch_begins) - 1)
            self._epoch_begins.append(self._epoch_begins[-1] + int(tokens.sum()))
        epoch = bisect_right(self._epoch_begins, token) - 1
        return epoch, token - self._epoch_begins[epoch]
