"""Intrusive quality of resynthesised speech: PESQ, STOI, ESTOI."""

from __future__ import annotations

import contextlib
import importlib.util
import math

import numpy as np

SHORTEST = 8000  # samples, half a second: less holds too little speech for either measure
QUIETEST = 1e-3  # a reference whose peak lies below (-60 dB of full scale) holds no speech to measure
LONGEST = 30 * 16000  # samples PESQ is given at once: its code overruns its buffers on minutes of speech
METRICS_RATE = 16000  # Hz; PESQ-WB and the published STOI figures are defined at or quoted for this rate


def speech_quality(reference: np.ndarray, degraded: np.ndarray) -> dict[str, float | None]:
    """Intrusive quality of one clip.

    Args:
        reference, degraded: float32 [S] at 16 kHz, aligned; the longer is cut to the shorter.

    Returns:
        "pesq_wb" (ITU-T P.862.2, 1 to 4.64; above 30 s the mean of equal pieces), "stoi" and "estoi" (0 to 1). None
        where the package is not installed (`pip install focalstream[metrics]`) or the clip holds too little speech.
    """
    samples = min(len(reference), len(degraded))
    if samples < SHORTEST or np.abs(reference[:samples]).max() < QUIETEST:
        return {"pesq_wb": None, "stoi": None, "estoi": None}
    reference, degraded = reference[:samples], degraded[:samples]
    return {
        "pesq_wb": _pesq(reference, degraded),
        "stoi": _stoi(reference, degraded, extended=False),
        "estoi": _stoi(reference, degraded, extended=True),
    }


def why_not_measured() -> str:
    """The reason for a None of `speech_quality`, for people."""
    if all(importlib.util.find_spec(package) for package in ("pesq", "pystoi")):
        return "too little speech"
    return "pip install focalstream[metrics]"


def _pesq(reference: np.ndarray, degraded: np.ndarray) -> float | None:
    try:
        from pesq import NoUtterancesError, PesqError, pesq
    except ImportError:
        return None
    values = []
    pieces = math.ceil(len(reference) / LONGEST)
    for clean, coded in zip(np.array_split(reference, pieces), np.array_split(degraded, pieces), strict=True):
        with contextlib.suppress(NoUtterancesError, PesqError):  # a piece without speech
            values.append(float(pesq(METRICS_RATE, clean, coded, "wb")))
    return sum(values) / len(values) if values else None


def _stoi(reference: np.ndarray, degraded: np.ndarray, extended: bool) -> float | None:
    try:
        from pystoi import stoi
    except ImportError:
        return None
    import warnings

    with warnings.catch_warnings(record=True) as caught:  # pystoi warns and returns 1e-5 when a clip is too short
        warnings.simplefilter("always")
        value = float(stoi(reference, degraded, METRICS_RATE, extended=extended))
    return None if caught else value
