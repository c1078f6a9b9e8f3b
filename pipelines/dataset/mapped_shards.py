"""The file with the tokens of one shard, tar or packed: where each cut lies in it, and a memory map of it.

The position of a cut follows from the index and from sizes in `dataset.json`, so a shard's file is not opened before
one of its cuts is read.
"""

from __future__ import annotations

import contextlib
import mmap
from pathlib import Path

import numpy as np

from pipelines.format.description import ShardEntry
from pipelines.format.layout import INDEX_DTYPE, Layout
from pipelines.format.packed import PackedShard
from pipelines.format.shards import read_index
from pipelines.storage.folders import Folder
from tokenizer.errors import InputError


class TarShard:
    """A shard read from its tar, which has the codes of each cut as little-endian uint16.

    Attributes:
        layout, entry: the dataset, and the shard in its `dataset.json`.
        file: what `map` maps.
    """

    packed = False

    def __init__(self, layout: Layout, entry: ShardEntry) -> None:
        self.layout, self.entry = layout, entry
        self.file = mappable(layout.codes_tar(entry.shard))

    def index(self) -> tuple[np.ndarray, np.ndarray]:
        """The byte where the codes of each cut begin, and how many they are, both int64 [N]. Raises InputError."""
        rows = checked_index(self.layout, self.entry)
        begins, lengths = rows["offset"].astype(np.int64), rows["tokens"].astype(np.int64)
        size = _recorded_bytes(self.file, self.layout, self.entry)
        if len(rows) and int((begins + 2 * lengths).max()) > size:
            raise InputError(
                f"{self.layout.codes_index(self.entry.shard)} points beyond its shard: it is damaged; "
                f"`focalstream verify {self.layout.out}` lists what is wrong"
            )
        return begins, lengths

    def map(self) -> memoryview:
        """The bytes of the file, mapped. Raises InputError where its size is not the one in `dataset.json`."""
        with contextlib.suppress(OSError, ValueError), open(self.file, "rb", buffering=0) as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if len(mapped) == _recorded_bytes(self.file, self.layout, self.entry):
                return memoryview(mapped)
        check_size(self.file, self.layout, self.entry)
        return np.memmap(self.file, np.uint8, "r").data  # raises whatever was suppressed above


class PackedCodes:
    """A shard read from its packed file; attributes and methods as of `TarShard`."""

    packed = True

    def __init__(self, layout: Layout, entry: ShardEntry, bits: int) -> None:
        self.layout, self.entry = layout, entry
        self.file = mappable(layout.packed_codes(entry.shard))
        self._bits = bits

    def index(self) -> tuple[np.ndarray, np.ndarray]:
        size = _recorded_bytes(self.file, self.layout, self.entry)
        if self.layout.codes_index(self.entry.shard).exists():
            lengths = checked_index(self.layout, self.entry)["tokens"].astype(np.int64)
        else:
            check_size(self.file, self.layout, self.entry)
            lengths = PackedShard(self.file).lengths
        sizes = -(-lengths * self._bits // 8)
        return size - np.cumsum(sizes[::-1])[::-1], lengths

    def map(self) -> memoryview:
        check_size(self.file, self.layout, self.entry)
        shard = PackedShard(self.file)
        begins, lengths = self.index()
        if shard.bits != self._bits or not np.array_equal(shard.lengths, lengths):
            raise InputError(
                f"{self.file}: {len(shard)} cuts in codes of {shard.bits} bits, not those of the index "
                f"({len(begins)} cuts, {self._bits} bits): it is damaged; `focalstream verify {self.layout.out}` lists "
                "what is wrong"
            )
        return shard.data.data


def mappable(path: Folder) -> Path:
    """The path of a dataset's file on disk; files behind a URL are brought into the cache first."""
    assert isinstance(path, Path)
    return path


def checked_index(layout: Layout, entry: ShardEntry) -> np.ndarray:
    """`INDEX_DTYPE` [N] of one shard. Raises InputError where it is damaged."""
    path = layout.codes_index(entry.shard)
    try:
        rows = _plain_index(path, entry.cuts)
        if rows is None:
            rows = read_index(layout, entry.shard)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); `focalstream verify {layout.out}` lists what is wrong"
        ) from error
    if rows.dtype != INDEX_DTYPE or rows.shape != (entry.cuts,):
        raise InputError(
            f"{path} holds {rows.shape} rows of {rows.dtype}, expected ({entry.cuts},) of {INDEX_DTYPE}; "
            f"`focalstream verify {layout.out}` lists what is wrong"
        )
    return rows


def _plain_index(path: Folder, cuts: int) -> np.ndarray | None:
    """The rows of an index as numpy writes it, without parsing its header, which takes ten times as long."""
    expected = f"{{'descr': {INDEX_DTYPE.descr!r}, 'fortran_order': False, 'shape': ({cuts},), }}".encode()
    with open(str(path), "rb", buffering=0) as file:
        data = file.read()
    begin = 10 + int.from_bytes(data[8:10], "little")
    if data[:8] != b"\x93NUMPY\x01\x00" or data[10:begin].rstrip() != expected:
        return None
    return np.frombuffer(data, INDEX_DTYPE, offset=begin) if len(data) == begin + cuts * INDEX_DTYPE.itemsize else None


def check_size(path: Path, layout: Layout, entry: ShardEntry) -> None:
    """Raise InputError where the size of a shard's file is not the one in `dataset.json`."""
    expected = _recorded_bytes(path, layout, entry)
    found = path.stat().st_size if path.exists() else 0
    if found != expected:
        raise InputError(
            f"{path}: {found} bytes, but dataset.json says {expected}: it is damaged or half-copied; "
            f"`focalstream verify {layout.out}` lists what is wrong"
        )


def _recorded_bytes(path: Path, layout: Layout, entry: ShardEntry) -> int:
    name = layout.name(path)
    if name not in entry.files:
        raise InputError(
            f"{layout.dataset}: shard {entry.shard} lists no file {name}: it is damaged; `focalstream repair "
            f"{layout.out}` restores it from its copy"
        )
    return entry.files[name].bytes
