"""Encoded audio as bytes at offsets: a file, a URL, a piece of a tar, a cell of Parquet; and what is known of each."""

from __future__ import annotations

import os
import stat
import threading
from typing import Any, BinaryIO

from pipelines.sources.parquet_cells import read_cell
from pipelines.sources.pieces import AudioPlace, ParquetCell
from pipelines.storage.places import is_url, open_place, size_of
from pipelines.storage.redirects import origin
from pipelines.storage.retries import retried
from tokenizer.audio_input.byte_source import ByteSource, FileBytes
from tokenizer.audio_input.contents import Contents
from tokenizer.audio_input.reader import AudioReader, examine

REMEMBERED = 256  # files whose contents are known, so that not every cut of a long recording goes through all its bytes
MEMORY_BYTES = 32 << 20  # files behind a URL up to this size are fetched once, whole


class SlicedBytes:
    """Bytes [offset, offset + size) of an open file; a read that fails and may succeed later is made again."""

    def __init__(self, file: BinaryIO, offset: int, size: int, host: str = "") -> None:
        self._file, self._offset, self.size, self._host = file, offset, size, host

    def read_at(self, offset: int, size: int) -> bytes:
        def read() -> bytes:
            self._file.seek(self._offset + offset)
            return self._file.read(max(0, min(size, self.size - offset)))

        return retried(read, self._host)

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


def open_audio(source: dict[str, Any], audio: AudioPlace | None, hosts: Hosts = None) -> ByteSource:
    """The bytes of a Lhotse audio source, or of its place in a tar or a Parquet file.

    Raises:
        OSError: it is missing, forbidden, or no regular file (a pipe would block for ever).
    """
    if isinstance(audio, ParquetCell):
        return _InMemory(read_cell(audio))
    place = source["source"] if audio is None else audio.path
    if audio is not None:
        return SlicedBytes(open_place(place), audio.offset, audio.size)
    if not is_url(place):
        if not stat.S_ISREG(os.stat(place).st_mode):
            raise OSError("it is no regular file, but a folder, a pipe or a device")
        return FileBytes(open(place, "rb"), size_of(place))
    size = size_of(place, hosts)
    remote = SlicedBytes(open_place(place, hosts), 0, size, origin(place))
    if size > MEMORY_BYTES:
        return remote
    data = remote.read_at(0, size)
    remote.close()
    return _InMemory(data)


_known: dict[Any, Contents] = {}
_known_lock = threading.Lock()


def open_reader(
    source: dict[str, Any], audio: AudioPlace | None, quick: bool = False, hosts: Hosts = None
) -> tuple[AudioReader, ByteSource]:
    """The decoder of a source, and its bytes, which the caller closes. `quick` is for its length only: what does not
    show at the ends of the file is found when it is read.

    Raises:
        OSError: it cannot be opened.
        BadAudio: it is empty, or no audio that is known.
    """
    data = open_audio(source, audio, hosts)
    try:
        key = _identity(source, audio, data.size)
        contents = _known.get(key)
        if contents is None and quick:
            contents = examine(data, quick)
        elif contents is None:
            contents = examine(data)
            with _known_lock:
                while len(_known) >= REMEMBERED:
                    del _known[next(iter(_known))]
                _known[key] = contents
        return AudioReader(data, contents), data
    except BaseException:
        data.close()
        raise


def _identity(source: dict[str, Any], audio: AudioPlace | None, size: int) -> Any:
    """What tells one content from another."""
    if audio is not None:
        return audio
    place = source["source"]
    return place, size, None if is_url(place) else os.stat(place).st_mtime_ns
