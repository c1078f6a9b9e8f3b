"""Use of a codebook, the length of entropy-coded tokens, and a line that flips bits."""

from __future__ import annotations

import numpy as np
import pytest

from tokenizer.metrics.codes import code_usage, flip_bits, flipped_bits, static_model_bits


def test_code_usage_of_a_known_distribution() -> None:
    usage = code_usage(np.array([0] * 4 + [1] * 2 + [2] * 2), 8)
    assert usage == {"used": 3 / 8, "entropy_bits": pytest.approx(1.5), "normalised_entropy": pytest.approx(0.5)}


def test_a_static_model_comes_near_the_entropy_of_a_known_distribution() -> None:
    rng = np.random.default_rng(0)
    utterances = [rng.choice(4, 5000, p=[0.5, 0.25, 0.125, 0.125]) for _ in range(4)]
    assert static_model_bits(utterances, 4) == pytest.approx(1.75, abs=0.02)  # within the sampling error of 20,000


def test_a_static_model_pays_for_what_it_has_not_seen() -> None:
    """Half the tokens of each half are new to the other: the plug-in entropy says 2 bits, and nobody can send that."""
    utterances = [np.array([0, 1] * 50), np.array([2, 3] * 50)]
    smoothed = -np.log2(0.5 / (100 + 0.5 * 4))
    assert static_model_bits(utterances, 4) == pytest.approx(smoothed)
    assert static_model_bits(utterances[:1], 4) is None


def test_bits_flip_as_often_as_asked_and_the_same_each_time() -> None:
    tokens = np.random.default_rng(1).integers(0, 4096, 20_000)
    noisy = flip_bits(tokens, 12, 0.01, np.random.default_rng(7))
    where = flipped_bits(tokens, noisy, 12)
    assert where.mean() == pytest.approx(0.01, rel=0.1)  # 2,400 flips expected, standard deviation 49
    assert where.any(0).all() and noisy.min() >= 0 and noisy.max() < 4096
    np.testing.assert_array_equal(noisy, flip_bits(tokens, 12, 0.01, np.random.default_rng(7)))
    np.testing.assert_array_equal(tokens, flip_bits(tokens, 12, 0.0, np.random.default_rng(7)))


def test_flipped_bits_are_in_the_order_of_the_codes(tiny_codec) -> None:
    rng = np.random.default_rng(2)
    tokens, others = rng.integers(0, 256, (2, 50))
    expected = (tiny_codec.codes(tokens) != tiny_codec.codes(others))[0].numpy()
    np.testing.assert_array_equal(flipped_bits(tokens, others, 8), expected)
