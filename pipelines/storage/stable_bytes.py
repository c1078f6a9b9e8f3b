"""Deterministic JSON, JSON Lines and gzip, and checksums of files."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipelines.storage.folders import Folder

UNFOLDS = 200  # times its size that gzip may unfold to; JSON Lines of cuts unfold to 10 to 50 times


@dataclass(frozen=True)
class StoredFile:
    """Size and checksum of a file that was written.

    Attributes:
        bytes: its size.
        sha256: of its content, hex.
    """

    bytes: int
    sha256: str

    def matches(self, path: Folder) -> bool:
        """Whether the file at `path` exists and has this size and checksum."""
        return path.is_file() and path.stat().st_size == self.bytes and sha256_file(path) == self.sha256


def stored_file(content: bytes) -> StoredFile:
    """Size and checksum of a file with this content."""
    return StoredFile(len(content), hashlib.sha256(content).hexdigest())


def json_bytes(value: Any) -> bytes:
    """Indented JSON; equal values give equal bytes."""
    return (json.dumps(value, indent=2) + "\n").encode("ascii")


def json_lines(values: Iterable[Any]) -> bytes:
    """One JSON value per line."""
    return "".join(json.dumps(value) + "\n" for value in values).encode("ascii")


def gzip_bytes(data: bytes, level: int = 6) -> bytes:
    """Gzip without file name and time, so that equal content gives equal bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=level, fileobj=buffer, mtime=0) as file:
        file.write(data)
    return buffer.getvalue()


def gunzipped(data: bytes) -> bytes:
    """What gzip bytes unfold to. Raises ValueError where that is absurdly much, and what damaged gzip raises."""
    most = UNFOLDS * len(data) + (1 << 20)
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        unfolded = file.read(most + 1)
    if len(unfolded) > most:
        raise ValueError(f"its {len(data):,} bytes unfold to more than {most:,}")
    return unfolded


def sha256_file(path: Folder) -> str:
    """Hex sha256 of a file's content, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def bytes_text(size: float) -> str:
    """A number of bytes for people: "378 B", "1.23 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.2f} TB"
