"""The words of continuations, in figures, and that eval-lm asks for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from slm.checkpoint import load_lm
from slm.evaluation.content import listen, word_figures
from slm.evaluation.evaluate import Options, evaluate
from slm.evaluation.samples import SampleOptions
from tokenizer.metrics.recogniser import Word


def test_words_are_counted_over_all_sound() -> None:
    waves = [np.full(16000, 0.1), np.full(48000, 0.2), np.full(4000, 0.3)]
    heard = {0.1: [Word("one", 0.9)], 0.2: [Word("two", 0.5), Word("too", 0.49), Word("to", 0.1)]}
    words = [listen(lambda wave: heard[wave[0]], wave) for wave in waves]  # the third is too short to be listened to
    found = word_figures(words, sum(map(len, waves)))
    assert found["words_per_second"] == pytest.approx(4 / 4.25)
    assert found["sure_words"] == 0.5 and found["sure_words_per_second"] == pytest.approx(2 / 4.25)


def test_without_sound_or_words_there_is_no_figure() -> None:
    assert set(word_figures([], 0).values()) == {None}
    found = word_figures([[]], 32000)
    assert found == {"words_per_second": 0, "sure_words": None, "sure_words_per_second": 0}


def test_eval_lm_measures_them(random_lm, tiny_codec, spoken_dataset: Path, monkeypatch) -> None:
    lengths: list[int] = []

    def recognise(wave: np.ndarray) -> list[Word]:
        lengths.append(len(wave))
        return [Word("word", 0.8), Word("wort", 0.2)]

    monkeypatch.setattr("slm.evaluation.evaluate.load_word_recogniser", lambda model: recognise)
    options = Options([spoken_dataset], swaps="no", samples=SampleOptions(3, 1.0, 0.6), recogniser="base")
    model, vocabulary = load_lm(str(random_lm), "cpu")
    result, _ = evaluate("random", model, vocabulary, tiny_codec, options)
    systems = result["samples"]["systems"]
    assert systems["recordings"]["sure_words"] == 0.5 and systems["recordings"]["words_per_second"] > 0
    assert "words_per_second" in systems["language model"]
    assert all(8000 <= length <= 9600 for length in lengths)  # what comes after the prompt alone
    assert "words of samples" not in result["not_measured"]
    without, _ = evaluate(
        "random", model, vocabulary, tiny_codec, Options([spoken_dataset], swaps="no", samples=options.samples)
    )
    assert "--recogniser" in without["not_measured"]["words of samples"]
