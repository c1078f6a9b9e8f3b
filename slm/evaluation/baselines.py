"""Baselines for the language model: a unigram and a bigram of the same codes.

Unigram: add-one smoothing over all codes and the end. Bigram: interpolated with the unigram by a pseudo-count
k (MacKay and Peto 1995),

    P(b | a) = (count(a, b) + k P(b)) / (count(a) + k),

where k is the power of two with the best leave-one-out likelihood of the training data.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import numpy as np

from slm.evaluation.likelihood import Documents, Reading

PSEUDO_COUNTS = tuple(2.0**power for power in range(21))


class Counts:
    """Counts of codes, ends and adjacent pairs in documents.

    Args:
        documents: tokens of each, int [T].
        codebook_size: K. In pairs, K stands for the begin as the first symbol and for the end as the second.
    """

    def __init__(self, documents: Iterable[np.ndarray], codebook_size: int) -> None:
        self._symbols = codebook_size + 1
        pairs = [self._pairs(codes) for codes in documents]
        joined = np.concatenate(pairs) if pairs else np.zeros(0, np.int64)
        self.tokens = len(joined)
        before, after = np.divmod(joined, self._symbols)
        one = np.bincount(after, minlength=self._symbols) + 1
        self._unigram = one / one.sum()
        self._before = np.bincount(before, minlength=self._symbols)
        self._seen, self._seen_counts = np.unique(joined, return_counts=True)

    @cached_property
    def pseudo_count(self) -> float:
        """The k of the bigram."""
        return min(PSEUDO_COUNTS, key=self._left_out_bits)

    def unigram(self, documents: Documents) -> list[np.ndarray]:
        """A `Scorer`."""
        return [-np.log2(self._unigram[self._pairs(codes) % self._symbols]) for codes in documents]

    def bigram(self, documents: Documents) -> list[np.ndarray]:
        """A `Scorer`."""
        found = []
        for codes in documents:
            pairs = self._pairs(codes)
            found.append(-np.log2(self._bigram(pairs, self._count(pairs), self._before[pairs // self._symbols])))
        return found

    def read_unigram(self, documents: Documents) -> list[Reading]:
        """A `Reader`."""
        code = int(self._unigram[:-1].argmax())
        return [
            Reading(bits, np.full(len(codes), code))
            for codes, bits in zip(documents, self.unigram(documents), strict=True)
        ]

    def read_bigram(self, documents: Documents) -> list[Reading]:
        """A `Reader`."""
        return [
            Reading(bits, self._followers[self._pairs(codes)[:-1] // self._symbols])
            for codes, bits in zip(documents, self.bigram(documents), strict=True)
        ]

    @cached_property
    def _followers(self) -> np.ndarray:
        """int64 [K + 1]: the most likely code after each symbol by the bigram; the lowest if several are equal."""
        anywhere = int(self._unigram[:-1].argmax())  # the most likely code that was never seen after a symbol
        found = np.full(self._symbols, anywhere)
        before, after = np.divmod(self._seen, self._symbols)
        score = self._seen_counts + self.pseudo_count * self._unigram[after]
        score[after == self._symbols - 1] = 0  # the end is not a code
        begins = np.flatnonzero(np.diff(before, prepend=-1))  # pairs are sorted, so those of a symbol are adjacent
        if not len(begins):
            return found
        best = np.repeat(np.maximum.reduceat(score, begins), np.diff(np.append(begins, len(score))))
        unseen = self.pseudo_count * self._unigram[anywhere]
        winners = np.flatnonzero((score == best) & ((score > unseen) | ((score == unseen) & (after < anywhere))))[::-1]
        found[before[winners]] = after[winners]  # equal ones are in descending order, so the lowest is written last
        return found

    def _pairs(self, codes: np.ndarray) -> np.ndarray:
        """The adjacent pairs of a document, from its begin to its end, as numbers: int64 [T + 1]."""
        framed = np.concatenate(([self._symbols - 1], codes.astype(np.int64), [self._symbols - 1]))
        return framed[:-1] * self._symbols + framed[1:]

    def _count(self, pairs: np.ndarray) -> np.ndarray:
        if not len(self._seen):
            return np.zeros(len(pairs))
        at = np.searchsorted(self._seen, pairs).clip(max=len(self._seen) - 1)
        return np.where(self._seen[at] == pairs, self._seen_counts[at], 0)

    def _bigram(
        self, pairs: np.ndarray, together: np.ndarray, before: np.ndarray, pseudo_count: float | None = None
    ) -> np.ndarray:
        k = self.pseudo_count if pseudo_count is None else pseudo_count
        return (together + k * self._unigram[pairs % self._symbols]) / (before + k)

    def _left_out_bits(self, pseudo_count: float) -> float:
        """Leave-one-out bits of the training data: each pair is counted once less."""
        before = self._before[self._seen // self._symbols] - 1
        left_out = self._bigram(self._seen, self._seen_counts - 1, before, pseudo_count)
        return float(-(self._seen_counts * np.log2(left_out)).sum())
