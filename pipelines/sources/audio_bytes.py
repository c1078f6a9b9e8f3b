"""Encoded audio as bytes at offsets: a file, a URL, a piece of a tar, a cell of Parquet; and what is known of each."""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from typing import Any, BinaryIO

from pipelines.sources.parquet_cells import read_cell
from pipelines.sources.pieces import KnownPlace, ParquetCell
from pipelines.storage.places import is_url, open_place, size_of
from pipelines.storage.ranges import HEAD_BYTES, SMALL_FILE, RangedBytes, fetch, head_of, tail_of
from pipelines.storage.retries import retried
from tokenizer.audio_input.byte_source import ByteSource, FileBytes
from tokenizer.audio_input.contents import Contents
from tokenizer.audio_input.kinds import HEAD_BYTES as KIND_BYTES
from tokenizer.audio_input.kinds import kind_of
from tokenizer.audio_input.ogg_part import FarOgg, OggMap
from tokenizer.audio_input.reader import AudioReader, examine

REMEMBERED = 256  # files whose contents are known, so that not every cut of a long recording goes through all its bytes
MEMORY_BYTES = 32 << 20  # of a file behind a URL that is fetched whole at most
WHOLE_FILES_BYTES = 128 << 20  # of the latest files of which several cuts are wanted, kept in memory
MOST = 0.5  # the share of a file from which on it is fetched whole
READ_THROUGH = ("Ogg", "MPEG")  # whose damage shows only when every byte is looked at


class SlicedBytes:
    """Bytes [offset, offset + size) of an open file; a read that fails and may succeed later is made again."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self.size = file, offset, size

    def read_at(self, offset: int, size: int) -> bytes:
        def read() -> bytes:
            self._file.seek(self._offset + offset)
            return self._file.read(max(0, min(size, self.size - offset)))

        return retried(read)

    def close(self) -> None:
        self._file.close()


class _InMemory:
    """The bytes of a file behind a URL that is fetched once."""

    def __init__(self, data: bytes) -> None:
        self._data, self.size = data, len(data)

    def read_at(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]

    def close(self) -> None:
        self._data = b""


Hosts = tuple[str, ...] | None
"""That audio may come from; None: any."""


def open_audio(source: dict[str, Any], audio: KnownPlace | None, hosts: Hosts = None, share: float = 1.0) -> ByteSource:
    """The bytes of a Lhotse audio source, or of its place in a tar or a Parquet file.

    Args:
        share: of the file that will be decoded; behind a URL a small share is fetched in pieces, all of a file at once.

    Raises:
        OSError: it is missing, forbidden, or no regular file (a pipe would block for ever).
    """
    if isinstance(audio, ParquetCell):
        return _InMemory(read_cell(audio))
    place = source["source"] if audio is None else audio.path
    if audio is not None and not is_url(place):
        return SlicedBytes(open_place(place), audio.offset, audio.size)
    if audio is not None:
        if audio.size <= MEMORY_BYTES:
            return _InMemory(fetch(place, audio.offset, audio.offset + audio.size))
        return RangedBytes(place, audio.offset, audio.size, round(share * audio.size))
    if not is_url(place):
        if not stat.S_ISREG(os.stat(place).st_mode):
            raise OSError("it is no regular file, but a folder, a pipe or a device")
        return FileBytes(open(place, "rb"), size_of(place))
    if (data := _whole_files.get(place, hosts)) is not None:
        return _InMemory(data)
    head = head_of(place, SMALL_FILE if share >= MOST else HEAD_BYTES, hosts)
    if len(head.data) == head.size:
        return _InMemory(head.data)
    is_long_ogg = head.size > MEMORY_BYTES and kind_of(head.data[:KIND_BYTES]) == "Ogg"
    tail = tail_of(place, head.size, hosts) if is_long_ogg else b""  # which every decoder looks at, for the length
    ranged = RangedBytes(place, 0, head.size, round(share * head.size), head.data, hosts, tail)
    if share >= MOST and head.size <= MEMORY_BYTES:
        return _InMemory(ranged.read_at(0, head.size))
    return ranged


class _WholeFiles:
    """Files behind URLs of which several cuts are wanted, and whose bytes have to be examined from end to end."""

    def __init__(self) -> None:
        self._files: OrderedDict[tuple[str, Hosts], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, place: str, hosts: Hosts) -> bytes | None:
        with self._lock:
            return self._files.get((place, hosts))

    def keep(self, place: str, hosts: Hosts, data: bytes) -> None:
        with self._lock:
            self._files[place, hosts] = data
            while sum(map(len, self._files.values())) > WHOLE_FILES_BYTES:
                self._files.popitem(last=False)


_whole_files = _WholeFiles()
_known: dict[Any, Contents] = {}
_ogg_maps: dict[Any, OggMap] = {}
_known_lock = threading.Lock()


def open_reader(
    source: dict[str, Any], audio: KnownPlace | None, quick: bool = False, hosts: Hosts = None, share: float = 1.0
) -> tuple[AudioReader, ByteSource]:
    """The decoder of a source, and its bytes, which the caller closes. `quick` is for its length only: what does not
    show at the ends of the file is found when it is read. `share` as of `open_audio`.

    Of FLAC and long Ogg behind a URL a few looks have to show that it is one stream; what is damaged in it shows when
    it is decoded. Shorter Ogg and MPEG are fetched whole and kept; long MPEG is read from end to end once.

    Raises:
        OSError: it cannot be opened.
        BadAudio: it is empty, or no audio that is known.
    """
    data = open_audio(source, audio, hosts, share)
    try:
        key = _identity(source, audio, data.size)
        contents, looks = _known.get(key), False
        if contents is None and not quick and isinstance(data, RangedBytes):
            kind = kind_of(data.read_at(0, KIND_BYTES))
            if kind in READ_THROUGH and data.size <= MEMORY_BYTES:
                whole = data.read_at(0, data.size)
                data = _InMemory(whole)
                if audio is None:
                    _whole_files.keep(source["source"], hosts, whole)
            looks = kind in ("FLAC", "Ogg") and isinstance(data, RangedBytes)
        if contents is None:
            contents = examine(data.for_looks() if looks and isinstance(data, RangedBytes) else data, quick or looks)
            if not quick:
                _remember(key, contents)
        if contents.kind == "Ogg" and isinstance(data, RangedBytes) and len(contents.streams) == 1 and not quick:
            data = data.exactly()
            return AudioReader(FarOgg(data, _ogg_map(key, data)), contents), data
        return AudioReader(data, contents), data
    except BaseException:
        data.close()
        raise


def _ogg_map(key: Any, data: ByteSource) -> OggMap:
    with _known_lock:
        known = _ogg_maps.get(key)
    if known is None:
        known = OggMap(data)
        with _known_lock:
            _ogg_maps[key] = known
            while len(_ogg_maps) > REMEMBERED:
                del _ogg_maps[next(iter(_ogg_maps))]
    return known


def _remember(key: Any, contents: Contents) -> None:
    with _known_lock:
        while len(_known) >= REMEMBERED:
            del _known[next(iter(_known))]
        _known[key] = contents


def _identity(source: dict[str, Any], audio: KnownPlace | None, size: int) -> Any:
    """What tells one content from another."""
    if audio is not None:
        return audio
    place = source["source"]
    return place, size, None if is_url(place) else os.stat(place).st_mtime_ns
