"""Accuracy on pairs of documents: how often a model gives the better one the higher likelihood.

The score of a document is its mean surprisal per code, without the end, because recordings end anywhere. Chance is one
half. The interval is Wilson's for independent pairs; pairs that share cuts are less independent.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from slm.evaluation.likelihood import Scorer

Z = 1.96  # quantile for the central 95 % of a normal distribution


@dataclass(frozen=True)
class Pair:
    """`better` and `worse` are tokens, int [T]. The first `prompt` tokens are equal and are not scored."""

    better: np.ndarray
    worse: np.ndarray
    prompt: int = 0
    item: str = ""  # pairs of one item (a word in several voices) count as one; empty: an item of its own


@dataclass(frozen=True)
class Accuracy:
    """Share of pairs whose better document is more likely; a tie counts half. `low` to `high`: 95 % interval."""

    accuracy: float
    low: float
    high: float
    items: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def accuracy(scorer: Scorer, pairs: Sequence[Pair]) -> Accuracy:
    """Score both documents of each pair (at least one pair)."""
    documents = [codes for pair in pairs for codes in (pair.better, pair.worse)]
    bits = scorer(documents)
    items: dict[str, list[float]] = defaultdict(list)
    for number, pair in enumerate(pairs):
        better, worse = (float(bits[2 * number + side][pair.prompt : -1].mean()) for side in (0, 1))
        items[pair.item or str(number)].append(0.5 + 0.5 * float(np.sign(worse - better)))
    return wilson(float(np.mean([np.mean(results) for results in items.values()])), len(items))


def wilson(share: float, count: int) -> Accuracy:
    """The 95 % interval of a share of `count` trials (Wilson 1927)."""
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return Accuracy(share, max(0.0, middle - half), min(1.0, middle + half), count)
