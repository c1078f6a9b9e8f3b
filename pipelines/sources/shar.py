"""Cuts of a Lhotse Shar folder, each with its turn in the shard's tar.

    cuts.000000.jsonl.gz       the cuts
    recording.000000.tar       pairs of audio and recording manifest, in the order of the cuts
    speaker_age.000000.jsonl   any other JSON field: one line a cut, which becomes a custom field of it

Tars of other fields (features, arrays) are not read.
"""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, TypeVar, cast

from pipelines.sources.access import NO_MORE, Access
from pipelines.sources.cuts import PathRule, SourceCut, as_cut, read_json_lines
from pipelines.sources.pieces import AudioPlace, TarPair
from pipelines.sources.shar_tars import Pair, find_pair, pairs_in
from pipelines.sources.tars import content_of
from pipelines.storage.ahead import in_order
from pipelines.storage.places import is_folder, join, names_in
from pipelines.storage.ranges import open_each
from tokenizer.errors import InputError

TARS_AT_A_TIME = 64  # behind a URL, where most of them wait

Cut = TypeVar("Cut", bound=SourceCut)


def is_shar(place: str) -> bool:
    """Whether a place is a folder in Lhotse Shar format (it has `cuts.*.jsonl` files)."""
    return is_folder(place) and bool(_shards_of("cuts", ".jsonl", _names(place)))


@dataclass
class SharBlock:
    """One shard: the names of its files in the folder."""

    folder: str
    rule: PathRule
    manifest: str
    tar: str | None
    fields: dict[str, str]
    opened: BinaryIO | None = None  # the manifest

    def cuts(self) -> Iterator[SourceCut]:
        """Every cut, lazily. Raises InputError where a field has not the same cuts in the same order."""
        tar = _Tar(join(self.folder, self.tar)) if self.tar else None
        extras = {field: read_json_lines(join(self.folder, name)) for field, name in self.fields.items()}
        manifest = join(self.folder, self.manifest)
        (opened,) = [self.opened] if self.opened else open_each([manifest])
        for turn, (where, line) in enumerate(read_json_lines(manifest, opened)):
            cut = as_cut(line, where, self.rule)
            audio = tar.attach(cut, turn, where) if tar else None
            for field, lines in extras.items():
                _attach(cut, field, lines)
            yield SourceCut(cut, audio)


def shar_blocks(folder: str, access: Access = NO_MORE, apart: bool = False) -> Iterator[SharBlock]:
    """The shards of a Shar folder, in order. Unless they are read `apart`, their lists of cuts are opened ahead.

    Raises:
        InputError: a field has not as many shards as the cuts.
    """
    names = _names(folder)
    manifests, tars = _shards_of("cuts", ".jsonl", names), _shards_of("recording", ".tar", names)
    others = sorted({name.split(".")[0] for name in names if name.removesuffix(".gz").endswith(".jsonl")} - {"cuts"})
    fields = {field: _shards_of(field, ".jsonl", names) for field in others}
    for field, found in {"recording": tars, **fields}.items():
        if found and len(found) != len(manifests):
            raise InputError(
                f"{folder}: {len(manifests)} files of cuts but {len(found)} of {field}; a shard is incomplete"
            )
    rule = PathRule(folder, access)
    opened = itertools.repeat(None) if apart else open_each([join(folder, name) for name in manifests])
    for number, (manifest, file) in enumerate(zip(manifests, opened, strict=False)):
        tar = tars[number] if tars else None
        yield SharBlock(folder, rule, manifest, tar, {field: found[number] for field, found in fields.items()}, file)


class _Tar:
    """The tar of a shard, which is walked only where the cuts do not say enough."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._pairs: Iterator[tuple[int, Pair]] | None = None

    def attach(self, cut: dict[str, Any], turn: int, where: str) -> AudioPlace | None:
        """The place of the audio of a cut, whose recording is filled in if it has none. Turns must grow.

        Raises:
            InputError: the tar has another cut at its turn.
        """
        if _describes_recording(cut):
            return TarPair(self._path, turn, cut["id"])
        if self._pairs is None:
            self._pairs = enumerate(pairs_in(self._path, recording=_recording))
        pair = next((pair for number, pair in self._pairs if number == turn), None)
        if pair is None or pair.name != cut["id"]:
            raise InputError(f"{where}: cut {cut['id']}, but its turn in {self._path} has {pair and pair.name}")
        if pair.recording is not None:
            cut["recording"] = pair.recording
        return pair.audio


def _describes_recording(cut: dict[str, Any]) -> bool:
    """Whether a cut has the recording that Lhotse writes for audio in a tar."""
    recording = cut.get("recording") or {}
    return _is_recording(recording) and all(source["type"] == "shar" for source in recording["sources"])


def _names(folder: str) -> list[str]:
    """Names of the files in a folder; hidden ones (macOS writes `._*` beside every file) are left out."""
    return [name for name in names_in(folder) if not name.startswith(".")]


def _shards_of(field: str, kind: str, names: list[str]) -> list[str]:
    """Shards of a field among sorted file names; `kind` is ".jsonl" or ".tar"."""
    return [name for name in names if name.split(".")[0] == field and name.removesuffix(".gz").endswith(kind)]


def _attach(cut: dict[str, Any], field: str, lines: Iterator[tuple[str, dict[str, Any]]]) -> None:
    """Give the cut its value of a JSON field as a custom one; a cut may have none."""
    where, line = next(lines, (f"the shard of {field}", {}))
    if line.get("cut_id") != cut["id"]:
        raise InputError(f"{where}: expected the {field} of cut {cut['id']}, found that of {line.get('cut_id')}")
    if field in line:
        cut["custom"] = {**(cut.get("custom") or {}), field: line[field]}


def _recording(tar: tarfile.TarFile, meta: tarfile.TarInfo) -> dict[str, Any]:
    """The recording manifest of a pair. Raises ValueError where it is none."""
    recording = json.loads(content_of(tar, meta))
    if not _is_recording(recording):
        raise ValueError(f"{meta.name!r} in it is no Lhotse recording")
    return recording


def _is_recording(value: Any) -> bool:
    """Whether a JSON value is a Lhotse recording, as far as it is looked at here."""
    sources = value.get("sources") if isinstance(value, dict) else None
    return isinstance(sources, list) and bool(sources) and all(_is_source(source) for source in sources)


def _is_source(source: Any) -> bool:
    return isinstance(source, dict) and isinstance(source.get("type"), str) and isinstance(source.get("channels"), list)


def located(cuts: Sequence[Cut]) -> list[Cut]:
    """The cuts, those in Shar tars with the place of their audio, many tars at a time. What cannot be found stays as it
    is: reading it says why."""
    tars: dict[str, list[int]] = {}
    for position, item in enumerate(cuts):
        if isinstance(item.audio, TarPair):
            tars.setdefault(item.audio.path, []).append(position)

    def find(positions: list[int]) -> list[AudioPlace]:
        return [_found(cast(TarPair, cuts[position].audio)) for position in positions]

    found = list(cuts)
    for positions, places in zip(tars.values(), in_order(find, tars.values(), TARS_AT_A_TIME), strict=True):
        for position, place in zip(positions, places, strict=True):
            found[position] = replace(found[position], audio=place)
    return found


def _found(place: TarPair) -> TarPair:
    try:
        return replace(place, place=find_pair(place))
    except Exception:  # HTTP and stores have errors of their own
        return place
