"""Cuts of a plain WebDataset tar: members with one name and different suffixes, one after another, are a sample.

    a/0001.flac  a/0001.json  a/0001.txt      audio, what is known of it, its text

A sample is a cut named `TAR/a/0001`. The fields of the JSON object become custom fields, and those with usual names the
supervision; `.txt` is the text. A sample without audio is no cut. What cannot be used goes to the quarantine.
"""

from __future__ import annotations

import json
import logging
import tarfile
from collections.abc import Iterator
from typing import Any

from pipelines.sources.cuts import PathRule, SourceCut
from pipelines.sources.tars import content_of, members_of, open_tar, slice_of, tar_source
from pipelines.sources.whole_audio import unusable_cut, whole_audio_cut, with_metadata
from pipelines.storage.places import name_of, parent
from tokenizer.audio_input.kinds import AUDIO_SUFFIXES

log = logging.getLogger(__name__)

Members = dict[str, tarfile.TarInfo]  # of one sample, by suffix


def read_webdataset(place: str) -> Iterator[SourceCut]:
    """Every sample with audio, in order, lazily.

    Raises:
        InputError: it is no uncompressed tar.
        OSError: it cannot be opened.
    """
    stem, rule, passed_over = name_of(place).removesuffix(".tar"), PathRule(parent(place)), 0
    with open_tar(place) as (tar, file):
        for key, members in _samples(members_of(tar, file)):
            if isinstance(members, str):
                yield unusable_cut(f"{stem}/{key}", "damaged", f"{place} {members}")
                continue
            audio = [suffix for suffix in members if f".{suffix.rpartition('.')[2]}" in AUDIO_SUFFIXES]
            passed_over += not audio
            for suffix in audio:
                cut_id = f"{stem}/{key}" if len(audio) == 1 else f"{stem}/{key}.{suffix}"
                try:
                    metadata = _metadata(tar, members)
                except ValueError as error:
                    yield unusable_cut(cut_id, "unreadable", f"{place}: {error}")
                    continue
                member = members[suffix]
                item = whole_audio_cut(cut_id, tar_source(place, member.name), slice_of(place, member))
                yield with_metadata(item, metadata, rule)
    if passed_over:
        log.warning("%s: samples passed over because they have no audio: %d", place, passed_over)


def _samples(found: Iterator[tarfile.TarInfo | str]) -> Iterator[tuple[str, Members | str]]:
    """(name, members by suffix) of every sample; of a tar that breaks off, at last ("rest", what is wrong)."""
    key, members = "", Members()
    for member in found:
        if isinstance(member, str):
            if members:
                yield key, members
            yield "rest", member
            return
        folder, slash, name = member.name.removeprefix("./").rpartition("/")
        base, _, suffix = name.partition(".")
        if (of := folder + slash + base) != key and members:
            yield key, members
            members = {}
        key = of
        members[suffix.lower()] = member
    if members:
        yield key, members


def _metadata(tar: tarfile.TarFile, members: Members) -> dict[str, Any]:
    """What JSON and text of a sample say. Raises ValueError where one of them cannot be read."""
    metadata: dict[str, Any] = {}
    if "json" in members:
        try:
            metadata = json.loads(content_of(tar, members["json"]))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{members['json'].name!r} in it is not JSON ({error})") from None
        if not isinstance(metadata, dict):
            raise ValueError(f"{members['json'].name!r} in it is no JSON object")
    if "txt" in members:
        try:
            metadata = {**metadata, "text": content_of(tar, members["txt"]).decode("utf-8").strip()}
        except UnicodeDecodeError:
            raise ValueError(f"{members['txt'].name!r} in it is not UTF-8") from None
    return metadata
