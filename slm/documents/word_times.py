"""The words of cuts with their times, as codes and as pieces, for interleaved documents.

Times come from Lhotse's alignments: `alignment["word"]` of a supervision lists [symbol, start, duration, score] of each
word, in seconds from the start of the recording (`lhotse.supervision.AlignmentItem`). Truncating a cut shifts its
supervisions but not these items, so within its cut a word starts at start - cut.start.

Every code of a cut belongs to one word. The border of two neighbours is the middle of the pause between them, rounded
to the nearest code (halves up); the first and the last word reach to the ends of the cut. A word without a code or
without pieces is merged with the next one.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from slm.text_model import TextModel
from tokenizer.errors import InputError

PAUSES = ("", "<eps>")  # symbols that aligners write for silence
ROUNDING = 0.01  # seconds: the frame length of aligners


class TimedWord(NamedTuple):
    """A word and its time in seconds from the start of its cut."""

    symbol: str
    begin: float
    end: float


@dataclass(frozen=True)
class Words:
    """The words of a dataset in one array: 2 to 8 bytes a word, 2 (or 4) a piece, 16 a cut.

    Attributes:
        begins: int64 [N + 1]: the first word of each cut, then W. A cut without word times has no words.
        codes: unsigned [W]: codes of each word; over a cut with words they add up to all its codes.
        written: unsigned [W]: pieces of each word.
        piece_begins: int64 [N + 1]: the first piece of each cut, then P.
        pieces: uint16 or uint32 [P]: of all words. Pieces of neighbours spell both words, with a space between.
    """

    begins: np.ndarray
    codes: np.ndarray
    written: np.ndarray
    piece_begins: np.ndarray
    pieces: np.ndarray

    @classmethod
    def read(
        cls, model: TextModel, cuts: Iterable[dict[str, Any]], lengths: Sequence[int] | np.ndarray, token_rate: float
    ) -> Words:
        """Read the word times of a dataset.

        Args:
            model: the text model.
            cuts: Lhotse cuts as dicts.
            lengths: tokens of each cut.
            token_rate: tokens per second.

        Raises:
            InputError: an alignment does not have Lhotse's format.
        """
        pieces, codes, written = array("I"), array("I"), array("I")
        word_counts, piece_counts = [0], [0]
        spelt: dict[str, list[int]] = {}
        for cut, tokens in zip(cuts, lengths, strict=True):
            words = timed_words(cut, float(tokens) / token_rate)
            held_codes, held_pieces, first = 0, 0, len(codes)
            for word, own_codes in zip(words, codes_of(words, int(tokens), token_rate), strict=True):
                if word.symbol not in spelt:
                    spelt[word.symbol] = model.encode(word.symbol)
                pieces.extend(spelt[word.symbol])
                held_codes, held_pieces = held_codes + own_codes, held_pieces + len(spelt[word.symbol])
                if held_codes and held_pieces:
                    codes.append(held_codes)
                    written.append(held_pieces)
                    held_codes, held_pieces = 0, 0
            if len(codes) > first:  # a remainder goes to the last word
                codes[-1] += held_codes
                written[-1] += held_pieces
            elif held_pieces:
                del pieces[-held_pieces:]
            word_counts.append(len(codes))
            piece_counts.append(len(pieces))
        return cls(
            np.array(word_counts, np.int64),
            _narrow(codes),
            _narrow(written),
            np.array(piece_counts, np.int64),
            np.array(pieces, np.uint16 if model.pieces <= 1 << 16 else np.uint32),
        )

    @property
    def counts(self) -> np.ndarray:
        """int64 [N]: words of each cut."""
        return np.diff(self.begins)


def timed_words(cut: dict[str, Any], seconds: float) -> list[TimedWord]:
    """The words of a cut in order of time.

    Args:
        cut: a Lhotse cut as a dict.
        seconds: length of the speech that the codes cover; words whose middle lies outside are left out.

    Returns:
        An empty list if a supervision has a text but no words, or has words outside itself: such times do not count
        from the start of the recording.

    Raises:
        InputError: an alignment does not have Lhotse's format.
    """
    words = []
    for supervision in cut.get("supervisions") or []:
        items = (supervision.get("alignment") or {}).get("word") or []
        if not items and supervision.get("text"):
            return []
        begin = supervision.get("start") or 0.0
        end = begin + (supervision.get("duration") or 0.0)
        for item in items:
            word = _timed_word(item, cut)
            if word.symbol.strip() in PAUSES:
                continue
            middle = (word.begin + word.end) / 2
            if not begin - ROUNDING <= middle <= end + ROUNDING:
                return []
            if 0 <= middle < seconds:
                words.append(word)
    return sorted(words, key=lambda word: word.begin)


def codes_of(words: Sequence[TimedWord], tokens: int, token_rate: float) -> list[int]:
    """Number of codes of each word of a cut; the sum is `tokens`."""
    edges = [0]
    for word, following in itertools.pairwise(words):
        middle = (word.end + following.begin) / 2 * token_rate
        nearest = math.floor(round(middle, 8) + 0.5)  # removes the rounding error of decimal fractions
        edges.append(min(max(nearest, edges[-1]), tokens))  # words of two speakers may overlap
    edges.append(tokens)
    return [end - begin for begin, end in itertools.pairwise(edges)] if words else []


def _timed_word(item: Any, cut: dict[str, Any]) -> TimedWord:
    try:
        symbol, start, duration = (list(item.values()) if isinstance(item, dict) else item)[:3]
        begin = start - (cut.get("start") or 0.0)
        if isinstance(symbol, str) and math.isfinite(begin) and 0 <= duration < math.inf:
            return TimedWord(symbol, begin, begin + duration)
    except (TypeError, ValueError):
        pass
    raise InputError(
        f"cut {cut.get('id')}: its word alignment has {item!r}; expected [symbol, start, duration, score], times in "
        "seconds, as Lhotse writes it"
    )


def _narrow(counts: array[int]) -> np.ndarray:
    """Counts as the smallest unsigned dtype that holds them."""
    found = np.array(counts, np.uint32)
    return found.astype(np.min_scalar_type(int(found.max(initial=0))))
