"""From the likelihood of speech in each frame to segments of wanted lengths.

A segment begins where speech is likely and ends where it no longer is (two thresholds, so that it does not flicker).
Short pauses are bridged as long as the segment stays below the longest; what is longer is divided at its least likely
frame; what is shorter than the shortest is dropped, and counted. Then each is widened a little, so that soft beginnings
and ends stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.segmentation.speech_activity import FRAME_SECONDS
from tokenizer.errors import InputError


@dataclass(frozen=True)
class Segmentation:
    """What segments are to be.

    Attributes:
        min_seconds, max_seconds: of a segment; shorter ones are dropped, longer ones divided.
        merge_pauses: seconds; pauses up to this are bridged.
        margin: seconds added on both sides, at most half of the pause there.
        threshold: likelihood at which speech begins; it ends below `threshold` - 0.15.
    """

    min_seconds: float = 1.0
    max_seconds: float = 30.0
    merge_pauses: float = 0.5
    margin: float = 0.1
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.min_seconds < self.max_seconds or self.max_seconds < 2 * FRAME_SECONDS:
            raise InputError(
                f"min_seconds is {self.min_seconds} and max_seconds is {self.max_seconds}: expected 0 or more, and the "
                "second above the first"
            )
        if not (self.merge_pauses >= 0 and self.margin >= 0):
            raise InputError(
                f"merge_pauses is {self.merge_pauses}, margin is {self.margin}: expected 0 or more seconds"
            )
        if not 0.15 < self.threshold < 1:
            raise InputError(f"threshold is {self.threshold}, expected more than 0.15 and less than 1")


@dataclass(frozen=True)
class Segment:
    """Seconds from the start of a recording, and the mean likelihood of speech in it."""

    start: float
    end: float
    speech: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


def find_segments(
    probabilities: np.ndarray, seconds: float, wanted: Segmentation
) -> tuple[list[Segment], list[Segment]]:
    """(segments, those dropped as too short) of a recording, in order; none overlap.

    Args:
        probabilities: [N], of `SpeechActivity.probabilities`.
        seconds: the recording lasts.
    """
    most = max(1, int((wanted.max_seconds - 2 * wanted.margin) / FRAME_SECONDS))
    runs: list[tuple[int, int]] = []
    for begin, end in _speech(probabilities, wanted.threshold):
        last = runs[-1] if runs else None
        pause = (begin - last[1]) * FRAME_SECONDS if last else 0.0
        if last and pause <= wanted.merge_pauses and end - last[0] <= most:
            runs[-1] = (last[0], end)
        else:
            runs.append((begin, end))
    runs = [part for run in runs for part in _divided(run, probabilities, most)]
    kept: list[Segment] = []
    dropped: list[Segment] = []
    for i, (begin, end) in enumerate(runs):
        before = begin - runs[i - 1][1] if i else begin
        after = runs[i + 1][0] - end if i + 1 < len(runs) else len(probabilities) - end
        start = begin * FRAME_SECONDS - min(wanted.margin, before * FRAME_SECONDS / (2 if i else 1))
        stop = end * FRAME_SECONDS + min(wanted.margin, after * FRAME_SECONDS / (2 if i + 1 < len(runs) else 1))
        segment = Segment(
            round(max(0.0, start), 4), round(min(seconds, stop), 4), round(float(probabilities[begin:end].mean()), 3)
        )
        if segment.seconds > 0:
            (kept if segment.seconds >= wanted.min_seconds else dropped).append(segment)
    return kept, dropped


def _speech(probabilities: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """[begin, end) frames of speech: from a frame at `threshold` or above to one below `threshold` - 0.15."""
    above, below = probabilities >= threshold, probabilities < threshold - 0.15
    marks = np.where(above, 1, np.where(below, 0, -1))  # -1: as the frame before
    known = np.where(marks >= 0, np.arange(len(marks)), 0)
    state = marks[np.maximum.accumulate(known)] == 1 if len(marks) else np.zeros(0, bool)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], state, [False]]).astype(np.int8)))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]


def _divided(run: tuple[int, int], probabilities: np.ndarray, most: int) -> list[tuple[int, int]]:
    """A run in parts of at most `most` frames, divided at the least likely frame of the second half of what fits."""
    begin, end = run
    parts = []
    while end - begin > most:
        low = begin + max(1, most // 2)
        cut = low + int(np.argmin(probabilities[low : begin + most + 1]))
        parts.append((begin, cut))
        begin = cut
    return [*parts, (begin, end)]
