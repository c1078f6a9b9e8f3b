"""Encoded audio as bytes at offsets: of a file, a pipe that was read to its end, or whatever else has `read_at`."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from tokenizer.audio_input.contents import Part
from tokenizer.errors import InputError

PIPE_BYTES = 1 << 30  # of a pipe that are read into memory at most


class ByteSource(Protocol):
    """Bytes that can be read at any offset."""

    size: int

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end."""
        ...

    def close(self) -> None: ...


class FileBytes:
    """The bytes of an open file that can seek."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.size = file, size

    def read_at(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()


def open_path(path: str | Path) -> FileBytes:
    """Open a file of any name; a pipe (`<(...)`, /dev/stdin) is read into memory.

    Raises:
        OSError: it is missing, forbidden, or neither a file nor a pipe.
        InputError: a pipe brings more than `PIPE_BYTES`.
    """
    file = Path(path).open("rb")  # noqa: SIM115 - closed by its `close`
    mode = os.fstat(file.fileno()).st_mode
    if stat.S_ISREG(mode):
        return FileBytes(file, os.fstat(file.fileno()).st_size)
    with file:
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            raise OSError("it is no regular file, but a folder or a device")
        data = file.read(PIPE_BYTES + 1)
    if len(data) > PIPE_BYTES:
        raise InputError(f"{path}: brings more than {PIPE_BYTES >> 30} GiB through a pipe; write it to a file first")
    return FileBytes(io.BytesIO(data), len(data))


class Window:
    """A source through a buffer, for short reads that go forward."""

    def __init__(self, source: ByteSource, block: int = 1 << 20) -> None:
        self.size = source.size
        self._source, self._block = source, block
        self._begin, self._buffer = 0, b""

    def at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end."""
        begin = offset - self._begin
        if begin < 0 or begin + size > len(self._buffer):
            self._begin, self._buffer, begin = offset, self._source.read_at(offset, max(size, self._block)), 0
        return self._buffer[begin : begin + size]

    def find(self, wanted: bytes, offset: int) -> int | None:
        """Offset of the first `wanted` from `offset` on."""
        while offset < self.size:
            block = self.at(offset, self._block)
            if (found := block.find(wanted)) >= 0:
                return offset + found
            if len(block) < self._block:
                return None
            offset += len(block) - len(wanted) + 1
        return None


class VirtualFile(io.RawIOBase):
    """Parts of a source, and literal bytes, one after another as a file.

    Decoders read it by calling back into Python, and take an exception there (such as a network error) for the end of
    the file. So the error is kept, and `check` raises it.
    """

    def __init__(self, source: ByteSource, parts: Sequence[Part]) -> None:
        super().__init__()
        self._source, self._parts = source, parts
        self._size = sum(_size(part) for part in parts)
        self._position = 0
        self._error: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        try:
            data = self._read(min(len(view), max(0, self._size - self._position)))
        except Exception as error:
            self._error = error
            return 0
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read(self, size: int) -> bytes:
        begin = self._position
        for part in self._parts:
            length = _size(part)
            if begin < length:
                size = min(size, length - begin)
                if isinstance(part, bytes):
                    return part[begin : begin + size]
                return self._source.read_at(part[0] + begin, size)
            begin -= length
        return b""

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


def _size(part: Part) -> int:
    return len(part) if isinstance(part, bytes) else part[1]
