"""Recordings, segment by segment, as cuts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipelines.segmentation.measures import Limits, load_dnsmos, measure
from pipelines.segmentation.segments import Segment, Segmentation, find_segments
from pipelines.segmentation.speech_activity import SAMPLE_RATE, SpeechActivity
from pipelines.sources.audio import expected_samples, read_resampled, read_wave
from pipelines.sources.cuts import SourceCut, describe_source
from tokenizer.errors import InputError
from tokenizer.metrics.intrusive import METRICS_RATE

log = logging.getLogger(__name__)


@dataclass
class Statistics:
    """Of a run so far; seconds of audio.

    Attributes:
        limited: segments dropped for each measure that was beyond its limit.
    """

    recordings: int = 0
    failed: int = 0
    seconds: float = 0.0
    segments: int = 0
    kept_seconds: float = 0.0
    too_short: int = 0
    too_short_seconds: float = 0.0
    limited: dict[str, int] = field(default_factory=dict)
    lengths: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: hours, shares, and the shortest, middle and longest segment."""
        lengths = sorted(self.lengths)
        return {
            "recordings": self.recordings,
            "failed": self.failed,
            "hours": round(self.seconds / 3600, 4),
            "segments": self.segments,
            "kept_hours": round(self.kept_seconds / 3600, 4),
            "kept_share": round(self.kept_seconds / self.seconds, 4) if self.seconds else 0.0,
            "too_short": self.too_short,
            "too_short_hours": round(self.too_short_seconds / 3600, 4),
            "dropped_by_limits": dict(self.limited),
            "segment_seconds": {
                "shortest": lengths[0],
                "median": lengths[len(lengths) // 2],
                "mean": round(self.kept_seconds / len(lengths), 3),
                "longest": lengths[-1],
            }
            if lengths
            else None,
        }


def segment_recordings(
    items: Iterator[SourceCut],
    wanted: Segmentation,
    limits: Limits,
    measured: bool,
    statistics: Statistics,
) -> Iterator[dict[str, Any]]:
    """A Lhotse cut for each segment of each recording; what cannot be read is counted, and said in the log.

    A recording is read in blocks, so its length does not matter. With `measured`, or with a limit, each segment is
    read once more, and its values stand in `custom`.

    Raises:
        InputError: a cut is of a Shar folder, whose audio later commands could not find, or a mix; a judge of the
            limits is not installed.
    """
    dnsmos = None if limits.min_dnsmos is None else load_dnsmos()
    activity = SpeechActivity()
    for item in items:
        if item.audio is not None or item.cut["type"] not in ("MonoCut", "MultiCut", "Cut"):
            raise InputError(f"cut {item.id}: is in a Shar tar, or a mix; expected recordings in files of their own")
        statistics.recordings += 1
        samples = expected_samples(item.cut, item.seconds, SAMPLE_RATE)
        try:
            probabilities = activity.probabilities(read_resampled(item, samples, SAMPLE_RATE))
        except MemoryError:
            raise
        except Exception as error:  # of the audio, a decoder or the system: the recording is at fault
            statistics.failed += 1
            log.warning("%s (%s): left out, %s", item.id, describe_source(item), error)
            continue
        statistics.seconds += item.seconds
        kept, dropped = find_segments(probabilities, item.seconds, wanted)
        statistics.too_short += len(dropped)
        statistics.too_short_seconds += sum(segment.seconds for segment in dropped)
        for number, segment in enumerate(kept):
            cut = _cut_of(item, segment, number)
            if measured or limits.any:
                rate = int(item.cut["recording"]["sampling_rate"])
                values = measure(read_wave(SourceCut(cut, hosts=item.hosts), rate), rate)
                if dnsmos is not None:
                    values["dnsmos"] = dnsmos(read_wave(SourceCut(cut, hosts=item.hosts), METRICS_RATE))
                cut["custom"] = {**cut["custom"], **values}
                if broken := limits.broken(values):
                    statistics.limited[broken] = statistics.limited.get(broken, 0) + 1
                    continue
            statistics.segments += 1
            statistics.kept_seconds += segment.seconds
            statistics.lengths.append(round(segment.seconds, 4))
            yield cut


def _cut_of(item: SourceCut, segment: Segment, number: int) -> dict[str, Any]:
    """The part of a cut that a segment is, with what its supervisions say of that part."""
    cut = item.cut
    supervisions = [
        {**supervision, "start": round(supervision["start"] - segment.start, 8)}
        for supervision in cut.get("supervisions") or []
        if supervision["start"] < segment.end and supervision["start"] + supervision["duration"] > segment.start
    ]
    return {
        **cut,
        "id": f"{item.id}-{number:05d}",
        "start": round((cut.get("start") or 0.0) + segment.start, 8),
        "duration": round(segment.seconds, 8),
        "supervisions": supervisions,
        "custom": {**(cut.get("custom") or {}), "speech_probability": segment.speech},
    }
