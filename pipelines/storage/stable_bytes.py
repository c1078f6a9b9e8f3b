"""The bytes of files that must be the same for the same content, and their checksums."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Iterable
from typing import Any

from pipelines.storage.folders import Folder


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


def sha256_file(path: Folder) -> str:
    """Hex sha256 of a file's content, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
