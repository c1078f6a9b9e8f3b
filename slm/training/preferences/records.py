"""Preferences on disk: JSON Lines, each a prompt with two continuations, of which the first is to become likelier.

    {"codec_fingerprint": "...", "prompt": [17, ...], "chosen": [5, ...], "rejected": [9, ...],
     "chosen_ends": true, "rejected_ends": false}

Prompt and continuations are tokens of the codec. `..._ends` says whether the end token follows. As each line says which
codec it is of, files can be joined, cut and shuffled with ordinary tools.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slm.vocabulary import BOS, EOS, FIRST_CODE, Vocabulary
from tokenizer.errors import InputError
from tokenizer.files import write_atomically

PARTS = ("prompt", "chosen", "rejected")
ENDS = ("chosen_ends", "rejected_ends")


class Preference(NamedTuple):
    """Tokens int64 [T] of a prompt and of two continuations, and whether these end the speech."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    chosen_ends: bool
    rejected_ends: bool

    def ids(self) -> tuple[np.ndarray, np.ndarray]:
        """Both documents as ids, int64 [T]: begin, prompt, continuation, and end where the speech ends."""
        continuations = ((self.chosen, self.chosen_ends), (self.rejected, self.rejected_ends))
        chosen, rejected = (
            [BOS, *(self.prompt + FIRST_CODE), *(codes + FIRST_CODE), *([EOS] if ends else [])]
            for codes, ends in continuations
        )
        return np.array(chosen, np.int64), np.array(rejected, np.int64)


def write_preferences(path: Path, preferences: Iterable[Preference], vocabulary: Vocabulary) -> None:
    """Write a file that `read_preferences` reads, atomically."""
    lines = [
        json.dumps(
            {
                "codec_fingerprint": vocabulary.codec_fingerprint,
                **{part: getattr(one, part).tolist() for part in PARTS},
                **{end: bool(getattr(one, end)) for end in ENDS},
            }
        )
        for one in preferences
    ]
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def read_preferences(path: Path, vocabulary: Vocabulary) -> list[Preference]:
    """Read preferences of the vocabulary's codec. `..._ends` may be missing, which means false.

    Raises:
        InputError: the file cannot be read, or a line is no preference, is of another codec, or has nothing to prefer.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InputError(f"{path}: cannot be read ({reason}); expected JSON Lines of preferences") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(_parsed(json.loads(line), vocabulary))
        except (InputError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{path}: line {number}: {reason}") from None
    if not found:
        raise InputError(f"{path}: holds no preferences; write some with `focalstream sample-pairs`")
    return found


def fingerprint_of(preferences: Iterable[Preference]) -> str:
    """Sha256 in hex of the content, in its order."""
    digest = hashlib.sha256()
    for one in preferences:
        for ids in one.ids():
            digest.update(f"{len(one.prompt)} {len(ids)} ".encode() + ids.tobytes())
    return digest.hexdigest()


def _parsed(raw: Any, vocabulary: Vocabulary) -> Preference:
    if not isinstance(raw, dict):
        raise InputError("is no JSON object")
    if raw["codec_fingerprint"] != vocabulary.codec_fingerprint:
        raise InputError(
            f"is of another codec (fingerprint {str(raw['codec_fingerprint'])[:12]}) than the model, whose codec is "
            f"'{vocabulary.codec_name}' ({vocabulary.codec_fingerprint[:12]}); draw preferences with this model"
        )
    parts: list[np.ndarray] = []
    for part in PARTS:
        codes = np.array(raw[part])
        if codes.ndim != 1 or (len(codes) and codes.dtype.kind != "i"):
            raise InputError(f"{part} is no list of tokens")
        if len(codes) and not 0 <= codes.min() <= codes.max() < vocabulary.codebook_size:
            raise InputError(
                f"{part} has tokens from {codes.min()} to {codes.max()}; expected 0 to {vocabulary.codebook_size - 1}"
            )
        parts.append(codes.astype(np.int64))
    ends = [raw.get(end, False) for end in ENDS]
    if not all(isinstance(end, bool) for end in ends):
        raise InputError(f"{' and '.join(ENDS)} are true or false")
    prompt, chosen, rejected = parts
    one = Preference(prompt, chosen, rejected, *ends)
    if any(len(ids) == len(one.prompt) + 1 for ids in one.ids()):
        raise InputError("a continuation is empty and does not end")
    if one.chosen_ends == one.rejected_ends and np.array_equal(one.chosen, one.rejected):
        raise InputError("chosen and rejected are the same")
    return one
