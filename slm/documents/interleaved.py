"""Documents in which speech and text alternate between words, for cuts with word times.

    <bos> <interleaved> <speech> codes <text> pieces <speech> codes ... <eos>

As in SpiRit-LM (arXiv 2402.05755), each word of a cut appears once, as codes or as pieces, and the kind switches
between words. So the model has to continue in one kind what it has seen in the other. The first mark is our addition:
in the other tasks (`slm.documents.tasks`) `<text>` and `<speech>` ask for the same words again, and without
`<interleaved>` the model could not tell the two apart.

The switches are drawn anew for each epoch. They are a function of (seed, epoch, dataset) alone.
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

SPAN_WORDS = 8  # mean words between switches: each word but the first switches with probability 1/8
FRAME = 3  # <bos>, <interleaved> and <eos>
TURNS_STREAM = 5  # separates these draws from those of the order, which use the same seed


@dataclass(frozen=True)
class InterleavedFraming:
    """The interleaved documents of one epoch, for `pipelines.dataset.batches`."""

    first_piece: int  # the id of piece 0
    words: Words
    seed: int
    epoch: int = 0

    @cached_property
    def in_text(self) -> np.ndarray:
        """bool [W]: words written as pieces; the others are codes."""
        key = np.random.SeedSequence((self.seed, self.epoch, TURNS_STREAM))
        count = len(self.words.codes)
        draws = np.random.Philox(key).random_raw(-(-count // 8)).astype("<u8").view(np.uint8)[:count]
        changes = draws < 256 // SPAN_WORDS
        first = self._first_of_cut
        changes[first] = draws[first] < 128
        return np.logical_xor.accumulate(changes)  # the first word of a cut is an independent fair draw

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
        """Marks and the spans that follow them; `said` are the ids of the cut's codes."""
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
    """Batches of documents that differ in each epoch, also in length; `tokens_per_epoch` is that of epoch 0.

    The start of an epoch in the stream is the sum of the epochs before it. So a run that resumes in epoch e first
    counts the lengths of e epochs, about a second per epoch for a million cuts.
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
