"""Cuts of NeMo's data: manifests of JSON lines with `audio_filepath`, and its tarred sets.

    FOLDER/
      tarred_audio_manifest.json  or  sharded_manifests/manifest_0.json ...     lines with `shard_id`
      audio_0.tar ...                                                            the audio of each shard

The id of a cut is its `audio_filepath`; `offset` and `duration` say which part of the audio it is. All other fields
become custom fields, and those with usual names the supervision.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from pipelines.sources.access import NO_MORE, REFUSED, Access
from pipelines.sources.cuts import PathRule, SourceCut, read_json_lines, whole_recording
from pipelines.sources.pieces import TarSlice
from pipelines.sources.tars import members_of, open_tar, slice_of, tar_source
from pipelines.sources.whole_audio import unusable_cut, whole_audio_cut, with_metadata
from pipelines.storage.places import exists, is_folder, is_url, join, names_in, parent
from tokenizer.errors import InputError

TARRED = "tarred_audio_manifest.json"
SHARDED = "sharded_manifests"
KEPT_TARS = 4  # whose members are held in memory
END_SECONDS = 0.05  # durations in manifests are rounded: a cut that ends so near to the end of its audio ends with it
_SUB = re.compile(r"-sub\d+(?=\.[^.]*$)")  # of several cuts of one file, which is in the tar once


def is_nemo_set(folder: str) -> bool:
    """Whether a folder is a tarred set."""
    return exists(join(folder, TARRED)) or is_folder(join(folder, SHARDED))


def is_nemo_manifest(place: str) -> bool:
    """Whether a file of JSON lines is a manifest of NeMo: its first line tells."""
    if not place.endswith((".json", ".jsonl", ".jsonl.gz")):
        return False
    try:
        return "audio_filepath" in next(read_json_lines(place), ("", {}))[1]
    except (InputError, OSError):  # whoever reads it tells
        return False


def manifests_of(folder: str) -> list[str]:
    """The manifests of a tarred set, in order."""
    if exists(join(folder, TARRED)):
        return [join(folder, TARRED)]
    sharded = join(folder, SHARDED)
    names = [name for name in names_in(sharded) if re.fullmatch(r"manifest_\d+\.json", name)]
    return [join(sharded, name) for name in sorted(names, key=lambda name: int(name[9:-5]))]


def read_nemo_set(folder: str) -> Iterator[SourceCut]:
    """Every line of the manifests of a tarred set, in order, lazily. A line whose audio is not in its tar becomes a cut
    that tokenizing quarantines.

    Raises:
        InputError: a manifest is no JSON, or one of its lines is none of NeMo's; the line is named.
    """
    rule, tars = PathRule(folder), OrderedDict[str, dict[str, TarSlice] | str]()
    for manifest in manifests_of(folder):
        for where, line in read_json_lines(manifest):
            name = _name(line, where)
            place = join(folder, f"audio_{line.get('shard_id')}.tar")
            if place not in tars:
                tars[place] = _slices(place)
                if len(tars) > KEPT_TARS:
                    tars.popitem(last=False)
            tars.move_to_end(place)
            found = tars[place]
            if isinstance(found, str):
                yield unusable_cut(name, "damaged", found)
                continue
            audio = found.get(name) or found.get(_SUB.sub("", name))
            if audio is None:
                yield unusable_cut(name, "missing file", f"{place}: it has no member {name!r}")
                continue
            yield _cut(name, tar_source(place, name), audio, line, where, rule)


def read_nemo_manifest(place: str, access: Access = NO_MORE) -> Iterator[SourceCut]:
    """Every line of a manifest of audio files, in order, lazily; what `access` does not allow is marked.

    Raises:
        InputError: one of its lines is none of NeMo's; the line is named.
    """
    rule, hosts = PathRule(parent(place), access), access.reachable(place)
    for where, line in read_json_lines(place):
        name = _name(line, where)
        path = rule.resolve(name)
        source = {"type": "url" if is_url(path) else "file", "source": path}
        rule.settle(source)
        yield _cut(name, source, None, line, where, rule, hosts)


def _name(line: dict[str, Any], where: str) -> str:
    name = line.get("audio_filepath")
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: audio_filepath is {name!r}, expected text that is not empty; mend this line")
    return name


def _slices(place: str) -> dict[str, TarSlice] | str:
    """Where each member of a tar is, by name; or why it cannot be read. Of a tar that breaks off, those before."""
    slices = {}
    try:
        with open_tar(place) as (tar, file):
            for member in members_of(tar, file):
                if not isinstance(member, str):
                    slices[member.name.removeprefix("./")] = slice_of(place, member)
    except (InputError, OSError) as error:
        return str(error)
    return slices


def _cut(
    name: str,
    source: dict[str, Any],
    audio: TarSlice | None,
    line: dict[str, Any],
    where: str,
    rule: PathRule,
    hosts: tuple[str, ...] | None = None,
) -> SourceCut:
    """The cut of a line: of its offset and duration in the audio; without a duration, to its end."""
    if source["type"] == REFUSED:
        recording = {"id": name, "sources": [{**source, "channels": [0]}], "sampling_rate": 0, "channel_ids": [0]}
        return SourceCut(whole_recording(recording), hosts=hosts)
    for field in ("offset", "duration"):
        if not _is_seconds(line.get(field)):
            return unusable_cut(name, "wrong manifest", f"{where}: {field} is {line[field]!r}, expected seconds")
    item = whole_audio_cut(name, source, audio, hosts)
    offset, seconds = line.get("offset") or 0.0, line.get("duration")
    if item.seconds:
        rest = item.seconds - offset
        lasts = rest if seconds is None or abs(rest - seconds) < END_SECONDS else seconds
        item = SourceCut({**item.cut, "start": float(offset), "duration": float(lasts)}, audio, hosts)
    described = {key: value for key, value in line.items() if key not in ("audio_filepath", "offset", "duration")}
    return with_metadata(item, described, rule)


def _is_seconds(value: Any) -> bool:
    """Whether a field holds a finite number, or nothing."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value))
