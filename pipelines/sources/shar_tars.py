"""Tars of Lhotse Shar: pairs of audio and its recording as JSON, in the order of the cuts.

Where the pairs are shows only from header to header, a small request each behind a URL. So planning leaves that to the
worker that reads the audio (`located`), and walks a tar only where the cuts do not describe their recordings.
"""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple, cast

from pipelines.sources.pieces import TarPair, TarSlice, is_file
from pipelines.storage.places import is_url, open_place, size_of
from pipelines.storage.ranges import RangedBytes
from tokenizer.audio_input.contents import BadAudio
from tokenizer.errors import InputError

WALKS = 128  # tars of which a process remembers where the pairs are


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


class Pair(NamedTuple):
    """A pair of a tar: the id of its cut, the place of its audio (None: there is none), and its recording, if that was
    asked for."""

    name: str
    audio: TarSlice | None
    recording: dict[str, Any] | None
    end: int  # of the pair in the tar, in bytes


ReadRecording = Callable[[tarfile.TarFile, tarfile.TarInfo], dict[str, Any]]


def pairs_in(path: str, begin: int = 0, recording: ReadRecording | None = None) -> Iterator[Pair]:
    """The pairs of a Shar tar from byte `begin` on, lazily. Only headers are read, unless `recording` reads the JSON,
    which may raise ValueError.

    Raises:
        InputError: it is no Shar tar.
        OSError: it cannot be read.
    """
    try:
        with _Remote(path) if is_url(path) else open_place(path) as file:
            file.seek(begin)
            with tarfile.open(fileobj=cast(BinaryIO, file), mode="r:") as tar:
                for data in tar:
                    meta = tar.next()
                    tar.members = []  # type: ignore[attr-defined]  # tarfile remembers, and may give again, every member
                    stem = data.name.rpartition(".")[0]
                    if data.name.endswith(".nodata") or (meta is None and recording):
                        yield Pair(stem, None, None, tar.offset)
                        continue
                    if not is_file(data):
                        raise ValueError(f"{data.name!r} in it is a link, a folder or the like, no file")
                    found = recording(tar, meta) if meta and recording else None
                    yield Pair(stem, TarSlice(path, data.offset_data, data.size), found, tar.offset)
    except InputError:
        raise
    except (tarfile.TarError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a Shar tar ({error}); expected an uncompressed tar of audio and JSON") from error


class _Walk:
    """Where the pairs of a tar are, as far as that was asked for."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._pairs: list[Pair] = []
        self._rest: Iterator[Pair] | None = None  # stays open, so that what was fetched beyond a header is not lost
        self._lock = threading.Lock()

    def pair(self, number: int) -> Pair | None:
        """Pair `number`, from 0; None where the tar has not so many. Raises as `pairs_in` does."""
        with self._lock:
            while number >= len(self._pairs):
                if self._rest is None:  # or it has met an error
                    self._rest = pairs_in(self._path, self._pairs[-1].end if self._pairs else 0)
                try:
                    pair = next(self._rest, None)
                except BaseException:
                    self._rest = None
                    raise
                if pair is None:
                    return None
                self._pairs.append(pair)
            return self._pairs[number]


_walks: OrderedDict[tuple[str, int], _Walk] = OrderedDict()
_walks_lock = threading.Lock()


def _walk(path: str) -> _Walk:
    written = 0 if is_url(path) else os.stat(path).st_mtime_ns
    with _walks_lock:
        walk = _walks.setdefault((path, written), _Walk(path))
        _walks.move_to_end((path, written))
        while len(_walks) > WALKS:
            _walks.popitem(last=False)
    return walk


def find_pair(place: TarPair) -> TarSlice:
    """Where the audio of a pair is, without a look if that is known.

    Raises:
        BadAudio: the tar is damaged, or has other audio there, or none.
        OSError: it cannot be read.
    """
    if place.place is not None:
        return place.place
    try:
        pair = _walk(place.path).pair(place.pair)
    except InputError as error:
        raise BadAudio("unreadable", str(error)) from error
    if pair is None:
        raise BadAudio("missing file", f"the tar has no pair {place.pair}; it is cut off, or the cuts are of another")
    if pair.name != place.name:
        raise BadAudio("wrong manifest", f"pair {place.pair} of the tar is {pair.name}, expected {place.name}")
    if pair.audio is None:
        raise BadAudio("missing file", f"pair {place.pair} of the tar is a placeholder without audio")
    return pair.audio
