"""Sampling: from the logits of a step to the next id of each stream. On NumPy arrays, so it needs no PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slm.vocabulary import EOS, FIRST_CODE
from tokenizer.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How the next token is sampled. Filters apply in the order of these fields.

    Raises:
        InputError: a value is out of range.
    """

    repetition_penalty: float = 1.0  # multiplies the log-probabilities of recent codes; 1: off
    repetition_window: int = 50  # codes that count as recent
    temperature: float = 1.0  # 0: always the most likely
    top_k: int = 0  # keep the k most likely; 0: off
    top_p: float = 1.0  # keep the most likely that together reach this probability; 1: off
    min_p: float = 0.0  # keep those with at least this share of the highest probability; 0: off
    silence_limit: int = 0  # silent codes in a row, at most; 0: no limit. Applies before the others
    silent_codes: tuple[int, ...] = ()  # which these are (`slm.generation.silence`)

    def __post_init__(self) -> None:
        for name, fits, expected in (
            ("repetition_penalty", 1 <= self.repetition_penalty < math.inf, "at least 1, and finite"),
            ("repetition_window", self.repetition_window >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "at least 0, and finite"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            ("silence_limit", self.silence_limit >= 0, "at least 0"),
        ):
            if not fits:
                raise InputError(f"{name} is {getattr(self, name)}; expected {expected}")


class RandomStream:
    """Uniform numbers of one stream: those of `torch.Generator().manual_seed(seed)`, bit for bit.

    PyTorch seeds the Mersenne Twister (Matsumoto and Nishimura, 1998) with the seed's low 32 bits, joins two of its
    outputs to 64 bits, and takes the low 53 as the fraction.
    """

    def __init__(self, seed: int) -> None:
        self._words = np.random.MT19937()
        self._words._legacy_seeding(seed & 0xFFFFFFFF)

    def uniform(self) -> float:
        """The next number in [0, 1)."""
        high, low = (int(word) for word in self._words.random_raw(2))
        return ((high << 32 | low) & (1 << 53) - 1) * 2.0**-53


def draw(
    logits: np.ndarray,
    sampling: Sampling,
    recent: np.ndarray,
    generators: Sequence[RandomStream],
    may_end: bool,
    silences: np.ndarray | None = None,
) -> np.ndarray:
    """Draw the next id of each stream: a code, or the end token where it may end.

    Args:
        logits: [B, V], of the special tokens followed by the codes (or other allowed ids).
        sampling: the filters.
        recent: int64 [B, W], the latest ids of each stream (`PAD` before its first).
        generators: one per stream; each gives one number.
        may_end: whether the end token may be drawn.
        silences: int64 [B], silent codes at the end of each stream so far; only for a `silence_limit`.

    Returns:
        int64 [B].
    """
    scores = logits.astype(np.float64)
    scores[:, :FIRST_CODE] = -np.inf
    if may_end:
        scores[:, EOS] = logits[:, EOS]
    if sampling.silence_limit and sampling.silent_codes and silences is not None:
        full = np.flatnonzero(silences >= sampling.silence_limit)
        scores[np.ix_(full, FIRST_CODE + np.array(sampling.silent_codes))] = -np.inf
    # Inverse of the cumulative distribution: an id of probability 0 has an empty interval and is never drawn.
    cumulative = filtered(scores, sampling, recent).cumsum(-1)
    drawn = np.array([generator.uniform() for generator in generators]) * cumulative[:, -1]
    return np.array([np.searchsorted(row, at, side="right") for row, at in zip(cumulative, drawn, strict=True)])


def silences_after(silences: np.ndarray, drawn: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Silent codes at the end of each stream, int64 [B], after the ids `drawn` [B]."""
    return np.where(np.isin(drawn - FIRST_CODE, sampling.silent_codes), silences + 1, 0)


def filtered(logits: np.ndarray, sampling: Sampling, recent: np.ndarray) -> np.ndarray:
    """Probabilities [B, V] after all filters, of float64 logits; they need not sum to 1."""
    highest = logits.max(-1, keepdims=True)
    scores = logits - highest - np.log(np.exp(logits - highest).sum(-1, keepdims=True))
    if sampling.repetition_penalty != 1:
        repeated = np.zeros(scores.shape, dtype=bool)
        np.put_along_axis(repeated, recent, True, axis=1)
        scores = np.where(repeated, scores * sampling.repetition_penalty, scores)
    if sampling.temperature == 0:
        likeliest = np.zeros_like(scores)
        np.put_along_axis(likeliest, scores.argmax(-1, keepdims=True), 1.0, axis=1)
        return likeliest
    # Relative to the highest score, so that a temperature near 0 does not make all scores minus infinity.
    probabilities = np.exp((scores - scores.max(-1, keepdims=True)) / sampling.temperature)
    probabilities /= probabilities.sum(-1, keepdims=True)
    if 0 < sampling.top_k < probabilities.shape[1]:
        least = -np.partition(-probabilities, sampling.top_k - 1, axis=-1)[:, sampling.top_k - 1, None]
        probabilities[probabilities < least] = 0.0
    if sampling.top_p < 1:
        ranked = np.sort(probabilities, axis=-1)[:, ::-1]
        before = ranked.cumsum(-1) - ranked
        # An id is kept if the ids before it have not reached top_p, so the first always is.
        kept = (before < sampling.top_p * ranked.sum(-1, keepdims=True)).sum(-1, keepdims=True)
        probabilities[probabilities < np.take_along_axis(ranked, kept - 1, axis=1)] = 0.0
    if sampling.min_p > 0:
        likeliest = probabilities.max(-1, keepdims=True)
        probabilities[probabilities < sampling.min_p * likeliest] = 0.0
    return probabilities
