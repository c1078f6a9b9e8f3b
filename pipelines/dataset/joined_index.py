"""One index of all shards of large datasets, kept in the user's cache and mapped by all processes of a machine.

Opening 100,000 shards one by one takes minutes and gigabytes in every process. The joined index depends on nothing but
the content of `dataset.json`, which has the checksums of all files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np

from pipelines.dataset.kept import Arrays, kept_arrays
from pipelines.dataset.mapped_shards import PackedCodes, TarShard
from pipelines.format.description import CodecEntry, ShardEntry
from pipelines.format.layout import Layout
from pipelines.storage.stable_bytes import StoredFile

LEAST_BYTES = 1 << 20  # of dataset.json, from which on an index is kept: about 1,000 shards
VERSION = 1  # of what is kept


class OpenedFolder(NamedTuple):
    """What a folder of shards is to `TokenDataset`."""

    codec: CodecEntry
    shards: Sequence[TarShard | PackedCodes]
    begins: list[np.ndarray]  # int64, of each shard: where its cuts begin in the shard's map
    lengths: list[np.ndarray]  # int64, of each shard: tokens of its cuts


class JoinedIndex:
    """The index of several folders on disk.

    Args:
        folders: on disk.
        packed: as of `TokenDataset`.
        open_folder: reads a folder shard by shard.

    Attributes:
        codecs: of each folder.
        begins, lengths: int64 [N], of each cut.
        counts: int64 [S], cuts of each shard.
        folder_shards: the first shard of each folder, then S.
    """

    def __init__(
        self, folders: Sequence[Path], packed: bool | None, open_folder: Callable[[Path], OpenedFolder]
    ) -> None:
        self._layouts = [Layout(folder) for folder in folders]
        key = identity_of(folders)
        kept = kept_arrays(f"joined-{VERSION}-{key[:32]}-{packed}", lambda: joined(folders, open_folder))
        self.codecs = [CodecEntry(**entry) for entry in json.loads(bytes(kept["codecs"]))]
        self.begins, self.lengths, self.counts = kept["begins"], kept["lengths"], kept["counts"]
        self.folder_shards = kept["folder_shards"].tolist()
        self.shards = JoinedShards(self._layouts, self.codecs, kept)


class JoinedShards(Sequence["TarShard | PackedCodes"]):
    """The shards of a joined index, each made when it is asked for."""

    def __init__(self, layouts: Sequence[Layout], codecs: Sequence[CodecEntry], kept: Arrays) -> None:
        self._layouts, self._codecs = layouts, codecs
        self._numbers, self._bytes, self._counts = kept["numbers"], kept["bytes"], kept["counts"]
        self._folder_begins: list[int] = kept["folder_shards"].tolist()
        self._tars = [str(layout.codes_tar(0)).removesuffix("000000.tar") for layout in layouts]
        self.packed = np.array(kept["packed"])  # of each shard

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> TarShard | PackedCodes: ...
    @overload
    def __getitem__(self, index: slice) -> list[TarShard | PackedCodes]: ...
    def __getitem__(self, index: int | slice) -> TarShard | PackedCodes | list[TarShard | PackedCodes]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        folder = bisect_right(self._folder_begins, index) - 1
        layout, number = self._layouts[folder], int(self._numbers[index])
        packed = bool(self.packed[index])
        file = layout.packed_codes(number) if packed else layout.codes_tar(number)
        files = {layout.name(file): StoredFile(bytes=int(self._bytes[index]), sha256="")}
        entry = ShardEntry(number, files, int(self._counts[index]), tokens=0, seconds=0.0, quarantined=0)
        return PackedCodes(layout, entry, self._codecs[folder].bits_per_token) if packed else TarShard(layout, entry)

    def read(self, index: int, begin: int, end: int) -> memoryview:
        """Bytes [begin, end) of the tar of a shard, without a map, which costs four times as much for a single cut.

        Raises InputError where its size is not the one in `dataset.json`.
        """
        folder = bisect_right(self._folder_begins, index) - 1
        with contextlib.suppress(OSError, AttributeError):  # a damaged file, or a system without `pread`
            file = os.open(f"{self._tars[folder]}{self._numbers[index]:06d}.tar", os.O_RDONLY)
            try:
                if os.fstat(file).st_size == self._bytes[index]:
                    data = os.pread(file, end - begin, begin)
                    if len(data) == end - begin:
                        return memoryview(data)
            finally:
                os.close(file)
        return self[index].map()[begin:end]  # raises whatever was suppressed above


def identity_of(folders: Sequence[Path]) -> str:
    """Sha256 in hex of all their `dataset.json`."""
    sha = hashlib.sha256()
    for folder in folders:
        sha.update(hashlib.sha256((folder / "dataset.json").read_bytes()).digest())
    return sha.hexdigest()


def is_large(folders: Sequence[Path]) -> bool:
    """Whether to keep an index of these folders."""
    files = [folder / "dataset.json" for folder in folders]
    return sum(file.stat().st_size for file in files if file.is_file()) >= LEAST_BYTES


def joined(folders: Sequence[Path], open_folder: Callable[[Path], OpenedFolder]) -> Arrays:
    """The arrays of a `JoinedIndex`. Raises what `open_folder` raises."""
    begins, lengths, counts, numbers, sizes, packed = [], [], [], [], [], []
    folder_shards, codecs = [0], []
    for folder in folders:
        opened = open_folder(folder)
        codecs.append(opened.codec.to_dict())
        begins += opened.begins
        lengths += opened.lengths
        counts += [len(shard) for shard in opened.lengths]
        for shard in opened.shards:
            numbers.append(shard.entry.shard)
            sizes.append(shard.entry.files[shard.layout.name(shard.file)].bytes)
            packed.append(shard.packed)
        folder_shards.append(len(numbers))
    empty = np.zeros(0, np.int64)
    return {
        "begins": np.concatenate([empty, *begins]),
        "lengths": np.concatenate([empty, *lengths]),
        "counts": np.array(counts, np.int64),
        "numbers": np.array(numbers, np.int64),
        "bytes": np.array(sizes, np.int64),
        "packed": np.array(packed, bool),
        "folder_shards": np.array(folder_shards, np.int64),
        "codecs": np.frombuffer(json.dumps(codecs).encode(), np.uint8),
    }
