"""Files that appear whole or not at all, even when the machine loses power."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, data: bytes, temporary: Path) -> None:
    """Write `data` under a name of this process in the folder `temporary`, sync it, then rename it to `path`.

    `temporary` lies on the same file system as `path` but is another folder, because readers of a shard folder take
    every file in it for data.
    """
    temporary.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = temporary / f"{path.name}.{os.getpid()}"
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the renames and deletions in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_bytes(value: Any) -> bytes:
    """Readable JSON, the same bytes for the same value."""
    return (json.dumps(value, indent=2) + "\n").encode("ascii")


def json_lines(values: Iterable[Any]) -> bytes:
    """One JSON value a line."""
    return "".join(json.dumps(value) + "\n" for value in values).encode("ascii")


def gzip_bytes(data: bytes) -> bytes:
    """Gzip without the file name and the time that would make equal content differ."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=buffer, mtime=0) as file:
        file.write(data)
    return buffer.getvalue()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's content, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
