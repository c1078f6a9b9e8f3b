"""Cuts of a Lhotse Shar folder, each with the place of its audio in the shard's tar.

    cuts.000000.jsonl.gz       the cuts
    recording.000000.tar       pairs of audio and recording manifest, in the order of the cuts
    speaker_age.000000.jsonl   any other JSON field: one line a cut, which becomes a custom field of it

Tars of other fields (features, arrays) are not read.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from pipelines.sources.access import NO_MORE, Access
from pipelines.sources.cuts import PathRule, SourceCut, as_cut, read_json_lines
from pipelines.sources.pieces import TarSlice
from pipelines.sources.tars import content_of, is_file
from pipelines.storage.ahead import in_order
from pipelines.storage.places import is_folder, is_url, join, names_in, open_place, size_of
from pipelines.storage.ranges import RangedBytes
from tokenizer.errors import InputError

TARS_AT_A_TIME = 16  # behind a URL


def is_shar(place: str) -> bool:
    """Whether a place is a folder in Lhotse Shar format (it has `cuts.*.jsonl` files)."""
    return is_folder(place) and bool(_shards_of("cuts", ".jsonl", _names(place)))


def read_shar(folder: str, access: Access = NO_MORE) -> Iterator[SourceCut]:
    """Every cut of a Shar folder, in order, lazily.

    Raises:
        InputError: a field has not as many shards as the cuts, or not the same cuts in the same order.
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
    in_tars = _in_tars([join(folder, name) for name in tars])
    for number, manifest in enumerate(manifests):
        audio = next(in_tars) if tars else None
        extras = {field: read_json_lines(join(folder, found[number])) for field, found in fields.items()}
        for where, line in read_json_lines(join(folder, manifest)):
            cut, piece = as_cut(line, where, rule), None
            if audio is not None:
                member, recording, piece = next(audio, (None, None, None))
                if member != cut["id"]:
                    raise InputError(f"{where}: cut {cut['id']}, but its turn in {tars[number]} has {member}")
                if recording is not None:
                    cut["recording"] = recording
            for field, lines in extras.items():
                _attach(cut, field, lines)
            yield SourceCut(cut, piece)


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


_Pair = tuple[str, dict[str, Any] | None, TarSlice | None]
"""(cut id, recording, place of its audio); the last two None for a placeholder."""


def _in_tars(places: list[str]) -> Iterator[Iterator[_Pair]]:
    """The pairs of each tar, in order. Behind URLs several are read at once, because each pair takes a request."""
    if not places or not is_url(places[0]):
        return map(_recordings_in_tar, places)
    return map(iter, in_order(lambda place: list(_recordings_in_tar(place)), places, TARS_AT_A_TIME))


class _Remote(io.RawIOBase):
    """A tar behind a URL, of which a little is fetched wherever `tarfile` goes: a header, the JSON, the next header."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self._data, self._at = RangedBytes(place, 0, size_of(place)), 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._data.size}[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        data = self._data.read_at(self._at, self._data.size if size < 0 else size)
        self._at += len(data)
        return data


def _recordings_in_tar(path: str) -> Iterator[_Pair]:
    """What is in a Shar tar, lazily."""
    try:
        with (
            _Remote(path) if is_url(path) else open_place(path) as file,
            tarfile.open(fileobj=cast(BinaryIO, file), mode="r:") as tar,
        ):
            for data in tar:
                meta = tar.next()
                stem = data.name.rpartition(".")[0]
                if data.name.endswith(".nodata") or meta is None:
                    yield stem, None, None
                    continue
                yield stem, _recording(tar, data, meta), TarSlice(path, data.offset_data, data.size)
                tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every member otherwise
    except InputError:
        raise
    except (tarfile.TarError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a Shar tar ({error}); expected an uncompressed tar of audio and JSON") from error


def _recording(tar: tarfile.TarFile, data: tarfile.TarInfo, meta: tarfile.TarInfo) -> dict[str, Any]:
    """The recording manifest of a pair. Raises ValueError where the pair is none."""
    if not is_file(data):
        raise ValueError(f"{data.name!r} in it is a link, a folder or the like, no file")
    recording = json.loads(content_of(tar, meta))
    sources = recording.get("sources") if isinstance(recording, dict) else None
    if not isinstance(sources, list) or not sources or not all(_is_source(source) for source in sources):
        raise ValueError(f"{meta.name!r} in it is no Lhotse recording")
    return recording


def _is_source(source: Any) -> bool:
    return isinstance(source, dict) and isinstance(source.get("type"), str) and isinstance(source.get("channels"), list)
