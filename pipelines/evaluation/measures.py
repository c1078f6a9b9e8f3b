"""The measures of an evaluation: what each is called, how it is printed, and how one clip gets them all.

Legend: S samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenizer.metrics import speech_quality
from tokenizer.metrics.pitch import pitch_errors
from tokenizer.metrics.spectral import mel_distance, stft_distance
from tokenizer.metrics.words import WordErrors, recognise, word_errors

ORIGINAL = "original"  # the row of the original itself, of the measures that need nothing to compare with


@dataclass(frozen=True)
class Measure:
    """One column. `scale` and `digits` are of its printed form; JSON has the plain value."""

    title: str
    meaning: str
    digits: int
    scale: float = 1.0

    def text(self, value: float | None) -> str:
        return "-" if value is None else f"{self.scale * value:.{self.digits}f}"


MEASURES = {
    "pesq_wb": Measure("PESQ-WB", "ITU-T P.862.2, 1 to 4.64, higher is better; hard on resynthesis", 3),
    "stoi": Measure("STOI", "short-time objective intelligibility, 0 to 1, higher is better", 3),
    "estoi": Measure("ESTOI", "extended STOI, 0 to 1, higher is better", 3),
    "mel_db": Measure("mel dB", "mean difference of 80-band log-mel magnitudes, dB", 2),
    "stft": Measure("STFT", "multi-resolution STFT distance: spectral convergence + log L1", 3),
    "f0_rmse_hz": Measure("F0 Hz", "root mean square pitch error where both are voiced, Hz (YIN)", 1),
    "f0_rmse_cents": Measure("F0 cents", "the same in cents, hundredths of a semitone", 0),
    "voicing_error": Measure("voicing %", "frames of 10 ms voiced in one and not in the other, %", 1, 100),
    "wer": Measure("WER %", "words of pocketsphinx's US English model against the true text, %", 1, 100),
    "dwer": Measure("dWER %", "the same against its own text of the original, %", 1, 100),
    "dnsmos": Measure("DNSMOS", "P.835 overall: predicted naturalness, 1 to 5, higher is better", 2),
    "speaker_ge2e": Measure("speaker", "cosine of GE2E embeddings with the original's, higher is better", 3),
    "wer_recogniser": Measure("WER rec. %", "words of the recogniser named below against the true text, %", 1, 100),
    "dwer_recogniser": Measure("dWER rec. %", "the same against its own text of the original, %", 1, 100),
    "utmos": Measure("UTMOS", "utmos22_strong: predicted naturalness, 1 to 5, higher is better", 2),
    "dwer_whisper": Measure("dWER Whisper %", "whisper-small's text against its text of the original, %", 1, 100),
    "speaker_similarity": Measure("speaker %", "cosine of wavlm-base-sv embeddings, %, higher is better", 1, 100),
}

Figures = dict[str, "float | WordErrors | None"]  # measure -> value


@dataclass(frozen=True)
class ClipJob:
    """A clip and what systems made of it, all float32 [S] at 16 kHz. `content` asks for the recogniser."""

    source: str
    original: np.ndarray
    waves: dict[str, np.ndarray]
    text: str
    content: bool


def measure_clip(job: ClipJob) -> dict[str, Figures]:
    """The figures of each system's wave, and of the original where it has some of its own."""
    rows = {name: _compare(job.original, wave) for name, wave in job.waves.items()}
    if not job.content:
        return rows
    heard = recognise(job.original)
    rows[ORIGINAL] = {}
    texts = {ORIGINAL: heard, **{name: recognise(wave) for name, wave in job.waves.items()}}
    for name, text in texts.items():
        if job.text:
            rows[name]["wer"] = word_errors(job.text, text)
        if name != ORIGINAL:
            rows[name]["dwer"] = word_errors(heard, text)
    return rows


def means(rows: Iterable[dict[str, Any]]) -> dict[str, float | None]:
    """Each measure over the rows that have it: a mean, but word errors as all errors over all words."""
    rows, out = list(rows), {}
    for measure in MEASURES:
        values = [row[measure] for row in rows if row.get(measure) is not None]
        if values and isinstance(values[0], WordErrors):
            errors, words = (sum(column) for column in zip(*values, strict=True))
            out[measure] = errors / words if words else None
        else:
            out[measure] = sum(values) / len(values) if values else None
    return out


def _compare(original: np.ndarray, wave: np.ndarray) -> Figures:
    return {
        **speech_quality(original, wave),
        "mel_db": mel_distance(original, wave),
        "stft": stft_distance(original, wave),
        **pitch_errors(original, wave)._asdict(),
    }
