"""Encoded audio for libsndfile: a local file, a URL, or a stretch of a tar, none of them ever whole in memory."""

from __future__ import annotations

import io
import os
import stat
from typing import Any, BinaryIO

from pipelines.sources.cuts import TarSlice
from pipelines.storage.places import is_url, open_place, size_of
from pipelines.storage.retries import retried


class AudioBytes(io.RawIOBase):
    """Bytes [offset, offset + size) of an open file.

    libsndfile calls back into Python to read, and takes an exception in there (a network that fails) for the end of
    the file. So the error is kept, and `check` raises it: nothing is cut short in silence.
    """

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        super().__init__()
        self._file, self._offset, self._size = file, offset, size
        self._position = 0
        self._error: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._size - self._position)]
        try:
            data = retried(lambda: self._read(len(view)))
        except Exception as error:
            self._error = error
            return 0
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read(self, size: int) -> bytes:
        self._file.seek(self._offset + self._position)
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, begin + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def check(self) -> None:
        """Raise what reading met since the file was opened."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._file.close()
        super().close()


def open_audio(source: dict[str, Any], audio: TarSlice | None) -> str | AudioBytes:
    """What libsndfile is to open for a Lhotse audio source, or for its place in a Shar tar: a path, or bytes.

    Raises:
        OSError: it is missing, forbidden, or no regular file (a pipe would block for ever).
    """
    place = source["source"] if audio is None else audio.path
    # libsndfile's "System error." does not tell a missing file from a forbidden one
    if not is_url(place) and not stat.S_ISREG(os.stat(place).st_mode):
        raise OSError("it is no regular file, but a folder, a pipe or a device")
    if audio is None and not is_url(place):
        return place
    offset, size = (0, size_of(place)) if audio is None else (audio.offset, audio.size)
    return AudioBytes(open_place(place), offset, size)
