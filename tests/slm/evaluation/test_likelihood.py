"""Readers: the language model in batches against one document at a time, and counting against its definition."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from slm.evaluation import likelihood
from slm.evaluation.baselines import PSEUDO_COUNTS, Counts
from slm.evaluation.likelihood import Reading, lm_reader, scorer
from slm.evaluation.token_errors import token_errors
from slm.model.transformer import LanguageModel, ModelConfig
from slm.vocabulary import BOS, EOS, FIRST_CODE, Vocabulary
from tokenizer.errors import InputError

CODES = 24
VOCABULARY = Vocabulary(CODES, 50.0, "some/codec", "ab" * 32)


def documents_of(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    """Codes that follow one another more often than by chance."""
    random = np.random.default_rng(seed)
    return [(np.cumsum(random.integers(0, 4, length)) % CODES).astype(np.uint16) for length in lengths]


@pytest.mark.parametrize("logits_at_once", [1, 20_000, 1 << 24])
def test_batches_of_any_size_equal_single_documents_of_any_length(logits_at_once, monkeypatch):
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", logits_at_once)
    torch.manual_seed(0)
    config = ModelConfig(width=16, layers=2, heads=2, kv_heads=1, ffn_width=24, context=20)
    model = LanguageModel(config, VOCABULARY.size).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    documents = documents_of([5, 0, 19, 20, 3, 300, 600, 1, 19])
    readings = lm_reader(model, VOCABULARY)(documents)
    for codes, (bits, likeliest) in zip(documents, readings, strict=True):
        ids = torch.tensor([[BOS, *(codes.astype(np.int64) + FIRST_CODE), EOS]])
        with torch.no_grad():
            logits = model(ids[:, :-1]).double()[0]
        expected = -logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0] / math.log(2)
        # Surprisals are computed in float32 from equal logits.
        np.testing.assert_allclose(bits, expected, atol=1e-5)
        np.testing.assert_array_equal(likeliest, logits[:-1, FIRST_CODE : FIRST_CODE + CODES].argmax(-1))
    for bits, reading in zip(scorer(lm_reader(model, VOCABULARY))(documents), readings, strict=True):
        np.testing.assert_array_equal(bits, reading.bits)


def test_codes_that_the_vocabulary_lacks_are_refused():
    model = LanguageModel(ModelConfig(8, 1, 1, 1, 8, 8), VOCABULARY.size)
    with pytest.raises(InputError, match="expected 0 to 23"):
        lm_reader(model, VOCABULARY)([np.array([3, CODES], np.uint16)])


def slow_bigram(training: list[np.ndarray], k: float, left_out: tuple[int, int] | None = None):
    """P(b | a) by the formula, with dictionaries; one pair may be left out of the counts of pairs."""
    framed = [[-1, *codes.tolist(), -2] for codes in training]
    after = Counter(b for row in framed for b in row[1:])
    pairs = Counter(pair for row in framed for pair in itertools.pairwise(row))
    if left_out is not None:
        pairs[left_out] -= 1
    before: Counter = Counter()
    for (a, _), count in pairs.items():
        before[a] += count
    total = after.total() + CODES + 1
    return lambda a, b: (pairs[a, b] + k * (after[b] + 1) / total) / (before[a] + k)


def test_counting_follows_its_definition():
    training, held_out = documents_of([40, 3, 0, 25], 1), documents_of([30, 0, 7], 2)
    counts = Counts(training, CODES)
    assert counts.tokens == 40 + 3 + 25 + 4
    bigram = slow_bigram(training, counts.pseudo_count)
    for codes, bits in zip(held_out, counts.bigram(held_out), strict=True):
        framed = [-1, *codes.tolist(), -2]
        expected = [-math.log2(bigram(a, b)) for a, b in itertools.pairwise(framed)]
        np.testing.assert_allclose(bits, expected, rtol=1e-12)
    unigram = slow_bigram(training, 1e18)  # so heavy that only the unigram is left
    for codes, bits in zip(held_out, counts.unigram(held_out), strict=True):
        np.testing.assert_allclose(bits, [-math.log2(unigram(0, b)) for b in [*codes.tolist(), -2]], rtol=1e-9)
    for a in range(-1, CODES):
        assert sum(bigram(a, b) for b in [*range(CODES), -2]) == pytest.approx(1)


def test_the_pseudo_count_predicts_left_out_pairs_best():
    training = documents_of([40, 3, 0, 25], 1)
    pairs = [pair for codes in training for row in [[-1, *codes.tolist(), -2]] for pair in itertools.pairwise(row)]
    bits = {k: -sum(math.log2(slow_bigram(training, k, pair)(*pair)) for pair in pairs) for k in PSEUDO_COUNTS[:12]}
    assert Counts(training, CODES).pseudo_count == min(bits, key=bits.__getitem__) not in (1.0, PSEUDO_COUNTS[11])


@pytest.mark.parametrize("lengths", [[40, 3, 0, 25], [2], [0], [400, 300]])
def test_the_likeliest_codes_of_counting_are_those_of_its_probabilities(lengths):
    """Against the largest of all codes, where pairs are few, and where each code has been before each other."""
    training, held_out = documents_of(lengths, 1), documents_of([30, 0, 7, 200], 2)
    counts = Counts(training, CODES)
    bigram, unigram = slow_bigram(training, counts.pseudo_count), slow_bigram(training, 1e18)
    for codes, reading in zip(held_out, counts.read_bigram(held_out), strict=True):
        framed = [-1, *codes.tolist()]
        assert reading.likeliest.tolist() == [max(range(CODES), key=lambda b: bigram(a, b)) for a in framed[:-1]]
        np.testing.assert_array_equal(reading.bits, counts.bigram([codes])[0])
    for codes, reading in zip(held_out, counts.read_unigram(held_out), strict=True):
        assert reading.likeliest.tolist() == [max(range(CODES), key=lambda b: unigram(0, b))] * len(codes)
        np.testing.assert_array_equal(reading.bits, counts.unigram([codes])[0])


def test_token_errors_count_codes_and_their_bits():
    random = np.random.default_rng(0)
    documents = [random.integers(0, 4096, n).astype(np.uint16) for n in (40, 0, 7)]
    guesses = [np.where(random.random(len(d)) < 0.3, d, random.integers(0, 4096, len(d))) for d in documents]
    readings = [Reading(np.zeros(len(d) + 1), guess) for d, guess in zip(documents, guesses, strict=True)]
    pairs = [(int(a), int(b)) for d, g in zip(documents, guesses, strict=True) for a, b in zip(d, g, strict=True)]
    found = token_errors(documents, readings, 4096)
    assert found["token_error_rate"] == pytest.approx(sum(a != b for a, b in pairs) / 47)
    assert found["wrong_bits"] == pytest.approx(sum((a ^ b).bit_count() for a, b in pairs) / 47)
    assert token_errors(documents, readings, 4100)["wrong_bits"] is None
