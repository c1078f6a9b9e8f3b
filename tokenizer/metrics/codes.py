"""Tokens as a source of bits: codebook usage, entropy coding, and bit errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SMOOTHING = 0.5  # added to each code's count: the Krichevsky-Trofimov estimate gives unseen codes a finite length


def code_usage(tokens: np.ndarray, codebook_size: int) -> dict[str, float]:
    """How evenly a codebook is used.

    Args:
        tokens: int [N], many utterances' tokens.
        codebook_size: number of codes there are.

    Returns:
        "used": fraction of codes that occur; "entropy_bits": entropy of their distribution, plug-in estimate, in bits;
        "normalised_entropy": that over log2(codebook_size).
    """
    return usage_of_counts(np.bincount(tokens, minlength=codebook_size))


def usage_of_counts(counts: np.ndarray) -> dict[str, float]:
    """`code_usage` of tokens that have been counted: int [codebook_size], not all zero."""
    p = counts[counts > 0] / counts.sum()
    entropy = float(-(p * np.log2(p)).sum())
    return {
        "used": float((counts > 0).mean()),
        "entropy_bits": entropy,
        "normalised_entropy": entropy / math.log2(len(counts)),
    }


def static_model_bits(utterances: Sequence[np.ndarray], codebook_size: int) -> float | None:
    """Bits per token under order-0 entropy coding, with a static model fitted on other tokens.

    A plug-in entropy is too good to be true where tokens are few beside codes. Here the even utterances fit the
    distribution (counts + 1/2) that codes the odd ones, and the other way round; the length is the ideal one,
    -log2 p, which an arithmetic coder meets within a bit or two an utterance.

    Args:
        utterances: int [T] each.
        codebook_size: number of codes there are.

    Returns:
        Mean over all tokens; None with fewer than two utterances.
    """
    if len(utterances) < 2:
        return None
    halves = [np.concatenate(utterances[start::2]) for start in (0, 1)]
    counts = [np.bincount(half, minlength=codebook_size) for half in halves]
    bits = 0.0
    for coded, fitted in ((counts[0], counts[1]), (counts[1], counts[0])):
        p = (fitted + SMOOTHING) / (fitted.sum() + SMOOTHING * codebook_size)
        bits -= float((coded * np.log2(p)).sum())
    return bits / sum(map(len, halves))


def flip_bits(tokens: np.ndarray, bits: int, probability: float, rng: np.random.Generator) -> np.ndarray:
    """Tokens int [T] with each of their `bits` bits flipped independently: a binary symmetric channel."""
    flips = rng.random((len(tokens), bits)) < probability
    return tokens ^ (flips @ (1 << np.arange(bits)))


def flipped_bits(tokens: np.ndarray, others: np.ndarray, bits: int) -> np.ndarray:
    """Which bits differ between int [T] and int [T]: bool [T, bits], in the order of a codec's codes."""
    return ((tokens ^ others)[:, None] >> np.arange(bits - 1, -1, -1) & 1).astype(bool)
