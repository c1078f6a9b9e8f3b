"""Intelligibility: word errors, and a recogniser that needs no download.

pocketsphinx carries its US English model inside its package. It is far weaker than today's recognisers, so figures are
to be read beside those of the originals.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tokenizer.metrics.intrusive import METRICS_RATE


class WordErrors(NamedTuple):
    """Words inserted, deleted or substituted, of `words` reference words."""

    errors: int
    words: int


class CharacterErrors(NamedTuple):
    """Characters inserted, deleted or substituted, of `characters` reference characters."""

    errors: int
    characters: int


def word_errors(expected: str, got: str) -> WordErrors:
    """Least edits from one text to the other, word by word, without case and punctuation."""
    wanted = _words(expected)
    return WordErrors(edit_distance(wanted, _words(got)), len(wanted))


def character_errors(expected: str, got: str) -> CharacterErrors:
    """Least edits from one text to the other, character by character: of the same words, with a space between."""
    wanted = " ".join(_words(expected))
    return CharacterErrors(edit_distance(wanted, " ".join(_words(got))), len(wanted))


def edit_distance(wanted: Sequence[Any], got: Sequence[Any]) -> int:
    """The least number of insertions, deletions and substitutions between two sequences (Levenshtein)."""
    costs = list(range(len(got) + 1))  # of turning the wanted items so far into each beginning of `got`
    for row, item in enumerate(wanted, 1):
        diagonal, costs[0] = costs[0], row
        for column, other in enumerate(got, 1):
            change = diagonal + (item != other)
            diagonal = costs[column]
            costs[column] = min(change, diagonal + 1, costs[column - 1] + 1)
    return costs[-1]


def recognise(wave: np.ndarray) -> str:
    """The English words of float32 [S] at 16 kHz; needs `pip install focalstream[content]`."""
    decoder = _recogniser()
    decoder.start_utt()
    decoder.process_raw((np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()
    best = decoder.hyp()
    return best.hypstr if best else ""


@functools.cache
def _recogniser() -> Any:
    from pocketsphinx import Decoder

    return Decoder(samprate=METRICS_RATE, loglevel="FATAL")


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("\u2019", "'"))
