"""Where encoded audio is that has no file of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TarSlice:
    """Encoded audio of one cut inside a tar: `size` bytes from byte `offset` of the file `path`."""

    path: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.path} @ {self.offset}"


@dataclass(frozen=True)
class ParquetCell:
    """Encoded audio of one cut inside a Parquet file: the bytes in `column` of a row of a row group."""

    path: str
    column: str
    group: int
    row: int

    def __str__(self) -> str:
        return f"{self.path}, row {self.row} of row group {self.group}"


AudioPlace = TarSlice | ParquetCell


def audio_place(stored: dict[str, Any]) -> AudioPlace:
    """A place from its fields."""
    return ParquetCell(**stored) if "column" in stored else TarSlice(**stored)
