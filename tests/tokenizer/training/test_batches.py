"""Batches are arithmetic: a function of seed and step alone, every cut by its duration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tokenizer.training.conftest import make_corpus
from tokenizer import InputError
from tokenizer.training.batches import Crops, Rates, Utterances
from tokenizer.training.corpus import Corpus, decode_corpus

RATES = Rates(16000, 16000, 1280)


def test_batches_are_a_function_of_seed_and_step() -> None:
    first, again = Crops(make_corpus(), RATES, 7680, 4, 0), Crops(make_corpus(), RATES, 7680, 4, 0)
    assert torch.equal(first[7].wave, again[7].wave)
    assert not torch.equal(first[7].wave, first[8].wave)
    assert not torch.equal(first[7].wave, Crops(make_corpus(), RATES, 7680, 4, 1)[7].wave)


def test_crops_cover_every_cut_by_its_duration() -> None:
    samples = np.repeat(np.array([1, 2, 3], dtype="<i2"), [30000, 10000, 500])
    corpus = Corpus(samples, np.array([30000, 40000, 40500]), ("", "", ""))
    batch = Crops(corpus, RATES, 1280, 2000, seed=0)[0]
    first = (batch.wave[:, 0] * 32768).int()
    np.testing.assert_allclose(first.bincount(minlength=4)[1:] / 2000, np.array([30000, 10000, 500]) / 40500, atol=0.03)
    assert (batch.wave[first == 3][:, 500:] == 0).all()
    assert (batch.lengths[first == 3] == 500).all() and (batch.lengths[first == 1] == 1280).all()


def test_target_is_the_same_audio_at_the_output_rate() -> None:
    corpus = make_corpus((4.0,), rate=24000)
    batch = Crops(corpus, Rates(16000, 24000, 1280), 12800, 3, 0)[0]
    assert batch.wave.shape == (3, 12800) and batch.target.shape == (3, 19200)
    for wave, target in zip(batch.wave.double().numpy(), batch.target.double().numpy(), strict=True):
        at = np.arange(1000, 11000)
        wanted = np.interp(at * 1.5, np.arange(19200), target)
        np.testing.assert_allclose(wave[at], wanted, atol=2e-3)  # linear interpolation of a chirp below 700 Hz


def test_an_epoch_of_utterances_has_each_once_beside_others_of_its_duration() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2000, 160000, 600)
    ends = np.cumsum(lengths)
    samples = np.zeros(ends[-1], dtype="<i2")
    samples[ends - lengths] = np.arange(1, 601)  # each utterance begins with its number
    batches = Utterances(Corpus(samples, ends, ("",) * 600), RATES, 200000, 7, seed=3)
    assert batches.per_epoch == 85
    epochs = []
    for epoch in range(2):
        numbers = []
        for step in range(85):
            batch = batches[epoch * 85 + step]
            found = (batch.wave[:, 0] * 32768).int().tolist()
            assert batch.lengths.tolist() == [lengths[n - 1] for n in found]
            assert batch.wave.shape[1] % 1280 == 0 and 0 <= batch.wave.shape[1] - max(batch.lengths.tolist()) < 1280
            numbers += found
        assert len(set(numbers)) == len(numbers) == 595
        epochs.append(numbers)
    assert epochs[0] != epochs[1]
    padding = [1 - float(b.lengths.float().mean()) / b.wave.shape[1] for b in (batches[i] for i in range(85))]
    assert np.mean(padding) < 0.35  # 0.46 for batches drawn without regard to duration
    again = Utterances(Corpus(samples, ends, ("",) * 600), RATES, 200000, 7, seed=3)
    assert torch.equal(again[100].wave, batches[100].wave)


def test_long_utterances_are_cut() -> None:
    batch = Utterances(make_corpus((6.0, 5.0)), RATES, 16000 * 2, 2, seed=0)[0]
    assert batch.wave.shape == (2, 32000) and batch.lengths.tolist() == [32000, 32000]


def test_corpus_is_decoded_once_and_refused_for_another(tmp_path: Path) -> None:
    cuts = [(np.linspace(-1, 1, 1000, dtype=np.float32), "up"), (np.zeros(10, dtype=np.float32), "")]
    corpus = decode_corpus(iter(cuts), "one", tmp_path, "cuts")
    assert corpus.ends.tolist() == [1000, 1010] and corpus.samples[0] == -32767 and corpus.samples[999] == 32767
    assert corpus.texts == ("up", "")
    again = decode_corpus((pytest.fail("decoded again") for _ in [0]), "one", tmp_path, "cuts")
    assert np.array_equal(again.samples, corpus.samples) and again.texts == corpus.texts
    with pytest.raises(InputError, match="another manifest"):
        decode_corpus(iter(cuts), "two", tmp_path, "cuts")
    with pytest.raises(InputError, match="no audio"):
        decode_corpus(iter([]), "none", tmp_path / "empty", "cuts")


def test_a_part_of_a_cut_has_no_text() -> None:
    corpus = make_corpus((4.0, 0.48))
    batch = Crops(Corpus(corpus.samples, corpus.ends, ("long", "short")), RATES, 7680, 30, seed=0)[0]
    assert set(batch.texts) == {"", "short"}


@pytest.mark.parametrize("damage", ["older", "torn", "short"])
def test_a_damaged_corpus_is_named(damage: str, tmp_path: Path) -> None:
    cuts = [(np.linspace(-1, 1, 1000, dtype=np.float32), "up")]
    decode_corpus(iter(cuts), "one", tmp_path, "cuts")
    if damage == "short":
        (tmp_path / "samples.int16").write_bytes(b"12")
    else:
        (tmp_path / "corpus.json").write_text('{"identity": "one", "ends": [1000]}' if damage == "older" else '{"id')
    with pytest.raises(InputError, match="delete"):
        decode_corpus(iter(cuts), "one", tmp_path, "cuts")
