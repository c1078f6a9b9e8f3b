"""Word errors counted by hand, and the recogniser on synthetic speech whose words are known."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from tokenizer.audio import read_audio
from tokenizer.metrics.words import character_errors, edit_distance, recognise, word_errors

DEMO_SPEECH = Path(__file__).resolve().parents[3] / "slm/demo/speech"


@pytest.mark.parametrize(
    ("expected", "heard", "errors", "words"),
    [
        ("They closed now, until.", "they closed now until", 0, 4),
        ("a b c d", "a x c d", 1, 4),
        ("a b c d", "b c d", 1, 4),
        ("a b c d", "a b b c d e", 2, 4),
        ("don\u2019t stop", "don't stop", 0, 2),
        ("two words", "", 2, 2),
        ("", "two words", 2, 0),
        ("kitten sitting on", "sitting kitten on", 2, 3),
    ],
)
def test_word_errors(expected: str, heard: str, errors: int, words: int) -> None:
    assert word_errors(expected, heard) == (errors, words)


@pytest.mark.parametrize(
    ("expected", "heard", "errors", "characters"),
    [
        ("Kitten, sits.", "sitting sit", 4, 11),  # k to s, e to i, a g more, an s less
        ("a b", "ab", 1, 3),
        ("", "ab", 2, 0),
        ("Done!", "done", 0, 4),
    ],
)
def test_character_errors(expected: str, heard: str, errors: int, characters: int) -> None:
    assert character_errors(expected, heard) == (errors, characters)


def test_the_edit_distance_is_that_of_the_recursion_that_defines_it() -> None:
    @functools.cache
    def defined(wanted: tuple[int, ...], got: tuple[int, ...]) -> int:
        if not wanted or not got:
            return len(wanted) + len(got)
        change = defined(wanted[1:], got[1:]) + (wanted[0] != got[0])
        return min(change, 1 + defined(wanted[1:], got), 1 + defined(wanted, got[1:]))

    random = np.random.default_rng(0)
    for _ in range(50):
        wanted, got = (tuple(random.integers(0, 4, random.integers(0, 9)).tolist()) for _ in range(2))
        assert edit_distance(wanted, got) == defined(wanted, got)


@pytest.mark.slow
def test_synthetic_speech_is_understood_in_part_whatever_came_before() -> None:
    pytest.importorskip("pocketsphinx")
    text = (DEMO_SPEECH / "sentences.txt").read_text().splitlines()[0]
    wave, other = (read_audio(DEMO_SPEECH / f"audio/{name}.ogg", 16_000) for name in ("ada-01", "hugh-01"))
    heard = recognise(wave)
    errors, words = word_errors(text, heard)
    assert errors < words / 2, (text, heard)
    assert recognise(other) != recognise(wave) == heard
