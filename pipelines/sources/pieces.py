"""Where encoded audio is that has no file of its own."""

from __future__ import annotations

import tarfile
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
class TarPair:
    """Encoded audio of one cut in a Shar tar: that of its pair number `pair`, from 0, which has the name of the cut.
    `place` is where it is, once somebody has looked."""

    path: str
    pair: int
    name: str
    place: TarSlice | None = None

    def __str__(self) -> str:
        return f"{self.path}, {self.name}"


@dataclass(frozen=True)
class ParquetCell:
    """Encoded audio of one cut inside a Parquet file: the bytes in `column` of a row of a row group."""

    path: str
    column: str
    group: int
    row: int

    def __str__(self) -> str:
        return f"{self.path}, row {self.row} of row group {self.group}"


KnownPlace = TarSlice | ParquetCell
AudioPlace = KnownPlace | TarPair


def audio_place(stored: dict[str, Any]) -> AudioPlace:
    """A place from its fields."""
    return next(kind(**stored) for field, kind in _KINDS.items() if field in stored)


_KINDS: dict[str, type[AudioPlace]] = {"column": ParquetCell, "pair": TarPair, "offset": TarSlice}
"""By a field that no other has."""


def is_file(member: tarfile.TarInfo) -> bool:
    """Whether a member of a tar has bytes of its own: a link could lead anywhere."""
    return member.isreg() and not member.issparse()
