"""The cut of all of a piece of encoded audio: its rate, channels and length are read, its samples are not."""

from __future__ import annotations

import contextlib
from typing import Any

from pipelines.sources.audio_bytes import Hosts, open_reader
from pipelines.sources.cuts import UNUSABLE, PathRule, SourceCut, whole_recording
from pipelines.sources.pieces import KnownPlace

SUPERVISION: dict[str, tuple[Any, tuple[str, ...]]] = {
    "text": (str, ("text", "transcript", "transcription", "sentence")),
    "speaker": ((str, int), ("speaker", "speaker_id", "client_id")),
    "language": (str, ("language", "lang", "locale")),
    "gender": (str, ("gender",)),
}
"""Fields of a supervision: the types of their values, and the keys under which data sets have them."""


def whole_audio_cut(
    cut_id: str, source: dict[str, Any], audio: KnownPlace | None = None, hosts: Hosts = None
) -> SourceCut:
    """A cut that lasts as long as its audio. Audio that cannot be read becomes a cut of no length, and tokenizing it
    says why.

    Args:
        cut_id: its id, and that of its recording.
        source: Lhotse's `type` and `source`.
        audio: where the bytes are, if not in a file of their own.
        hosts: that they may come from; None for any.
    """
    try:
        reader, data = open_reader(source, audio, quick=True, hosts=hosts, share=0.0)
        with contextlib.closing(data):
            rate, frames, channels = reader.sample_rate, reader.frames(), list(range(reader.channels))
    except Exception:  # of the audio, the system or a network: reading the cut meets it again, and tells
        rate, frames, channels = 0, 0, [0]
    recording = {
        "id": cut_id,
        "sources": [{"type": source["type"], "channels": channels, "source": source["source"]}],
        "sampling_rate": rate,
        "num_samples": frames,
        "duration": frames / rate if rate else 0.0,
        "channel_ids": channels,
    }
    return SourceCut(whole_recording(recording), audio, hosts)


def unusable_cut(cut_id: str, reason: str, detail: str) -> SourceCut:
    """A cut that is known not to be usable: it goes to the quarantine with this reason, so that nothing is lost."""
    recording = {
        "id": cut_id,
        "sources": [{"type": UNUSABLE, "channels": [0], "source": detail, "reason": reason}],
        "sampling_rate": 0,
        "num_samples": 0,
        "duration": 0.0,
        "channel_ids": [0],
    }
    return SourceCut(whole_recording(recording))


def with_metadata(item: SourceCut, metadata: dict[str, Any], rule: PathRule) -> SourceCut:
    """The cut with what its data set says of it: everything as custom fields, and what usual keys say as a supervision
    over all of it. `rule` renames fields by whose names shards call something else."""
    cut = item.cut
    said = {}
    for field, (kinds, names) in SUPERVISION.items():
        values = [metadata[name] for name in names if isinstance(metadata.get(name), kinds)]
        if found := next((str(value) for value in values if value != ""), None):
            said[field] = found
    if said:
        whole = {"id": cut["id"], "recording_id": cut["id"], "start": 0.0, "duration": cut["duration"]}
        cut = {**cut, "supervisions": [{**whole, "channel": cut["channel"], **said}]}
    if metadata:
        cut = {**cut, "custom": dict(metadata)}
        rule.keep_apart(cut)
    return SourceCut(cut, item.audio, item.hosts)
