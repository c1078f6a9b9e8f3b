"""CORPUS -> TRAINING BATCHES: random crops, or whole utterances of like durations.

Which audio makes batch `step` is a pure function of (seed, step), so a run resumes by its step number alone, and rank r
of w takes the steps r, r + w, r + 2w, ...

Legend: B batch, S samples at the codec's input rate, S' samples at its output rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import soxr
import torch
from torch import Tensor

from tokenizer.training.augment import NO_AUGMENTATION, Augmentation, at_speed
from tokenizer.training.corpus import Corpus

SHUFFLED_TOGETHER = 50  # batches of utterances next to one another in duration, among which each epoch mixes


class Batch(NamedTuple):
    """wave [B, S]; target [B, S'], the same audio at the output rate; lengths int64 [B] in samples of `wave`; texts,
    "" for rows that hold a part of a cut."""

    wave: Tensor
    target: Tensor
    lengths: Tensor
    texts: tuple[str, ...]

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""
        wave, target, lengths = (t.to(device, non_blocking=True) for t in self[:3])
        return Batch(wave, target, lengths, self.texts)


class Batches(Protocol):
    """Batches by number, without end."""

    per_epoch: int  # batches that hold as much audio as the corpus

    def __getitem__(self, step: int) -> Batch: ...


class Rates(NamedTuple):
    """input, output: Hz; chunk: samples at the input rate that rows are whole numbers of."""

    input: int
    output: int
    chunk: int

    def target_samples(self, samples: int) -> int:
        return samples * self.output // self.input


class Crops:
    """Random crops of equal length, weighted by duration; cuts shorter than a crop are filled with silence.

    Args:
        corpus: at the output rate.
        rates: of the codec.
        samples: of a crop, at the input rate; a whole number of chunks.
        size: crops of a batch.
        seed: of the crops' places.
        augmentation: what happens to them; the draws come after those of the places.
    """

    def __init__(
        self,
        corpus: Corpus,
        rates: Rates,
        samples: int,
        size: int,
        seed: int,
        augmentation: Augmentation = NO_AUGMENTATION,
    ) -> None:
        self.corpus, self.rates, self.crop, self.size, self.seed = corpus, rates, samples, size, seed
        self.augmentation = augmentation
        self.shares = np.cumsum(corpus.lengths) / corpus.lengths.sum()
        self.per_epoch = max(1, int(corpus.lengths.sum()) // (size * rates.target_samples(samples)))

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, step))
        wanted = self.rates.target_samples(self.crop)

        def crop(cut: int) -> np.ndarray:
            begin = int(rng.integers(0, max(int(self.corpus.lengths[cut]) - wanted, 0) + 1))
            if self.augmentation == NO_AUGMENTATION:
                return self.corpus.read(cut, begin, wanted)
            changes = np.random.default_rng((self.seed, step, *rng.integers(0, 2**32, 2)))
            factor = self.augmentation.speed_factor(changes)
            piece = at_speed(self.corpus.read(cut, begin, math.ceil(wanted * factor)), factor, wanted)
            return self.augmentation.apply(piece, self.rates.output, changes)

        cuts = np.searchsorted(self.shares, rng.random(self.size), side="right")
        return _batch(self.corpus, self.rates, cuts, crop, self.crop)


class Utterances:
    """Whole utterances, those of a batch of about the same duration, every one once an epoch (but for a last few).

    Args:
        corpus: at the output rate.
        rates: of the codec.
        samples: of each utterance that are kept at most, at the input rate.
        size: utterances of a batch.
        seed: of the order.
    """

    def __init__(self, corpus: Corpus, rates: Rates, samples: int, size: int, seed: int) -> None:
        self.corpus, self.rates, self.seed = corpus, rates, seed
        self.longest = samples // rates.chunk * rates.chunk
        self.size = min(size, len(corpus.lengths))
        self.by_duration = np.argsort(corpus.lengths, kind="stable")
        self.per_epoch = len(corpus.lengths) // self.size
        self._epoch, self._order = -1, np.zeros((0, self.size), dtype=np.int64)

    def __getitem__(self, step: int) -> Batch:
        epoch, index = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        cuts = self._order[index]
        limit = self.rates.target_samples(self.longest)
        longest = min(int(self.corpus.lengths[cuts].max()), limit)
        samples = -(-longest * self.rates.input // self.rates.output)
        samples = -(-samples // self.rates.chunk) * self.rates.chunk
        return _batch(self.corpus, self.rates, cuts, lambda cut: self.corpus.read(cut, 0, limit), samples)

    def _shuffled(self, epoch: int) -> np.ndarray:
        """[per_epoch, size] of cuts: mixed within buckets of like durations, then the batches mixed."""
        rng = np.random.default_rng((self.seed, epoch))
        skipped = rng.permutation(len(self.by_duration))[: len(self.by_duration) % self.size]
        order = np.delete(self.by_duration, skipped)
        for start in range(0, len(order), SHUFFLED_TOGETHER * self.size):
            rng.shuffle(order[start : start + SHUFFLED_TOGETHER * self.size])
        return rng.permutation(order.reshape(self.per_epoch, self.size))


def _batch(corpus: Corpus, rates: Rates, cuts: np.ndarray, read: Callable[[int], np.ndarray], samples: int) -> Batch:
    """Rows of `samples` at the input rate, filled with silence."""
    target = np.zeros((len(cuts), rates.target_samples(samples)), dtype=np.float32)
    wave = target if rates.input == rates.output else np.zeros((len(cuts), samples), dtype=np.float32)
    lengths, texts = np.zeros(len(cuts), dtype=np.int64), []
    for row, cut in enumerate(cuts):
        piece = read(int(cut))
        target[row, : len(piece)] = piece
        texts.append(corpus.texts[int(cut)] if len(piece) == corpus.lengths[cut] else "")
        lengths[row] = min(-(-len(piece) * rates.input // rates.output), samples)
        if wave is not target:
            wave[row] = _resampled(target[row], rates, samples)
    return Batch(torch.from_numpy(wave), torch.from_numpy(target), torch.from_numpy(lengths), tuple(texts))


def _resampled(target: np.ndarray, rates: Rates, samples: int) -> np.ndarray:
    """One row at the input rate."""
    wave = soxr.resample(target, rates.output, rates.input, quality="HQ")[:samples]
    return np.pad(wave, (0, samples - len(wave)))
