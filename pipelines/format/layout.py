"""The files of a tokenized dataset, and the fixed layout of its per-shard index.

OUT/
  dataset.json                 identity and totals; written last, so its presence means "complete"
  dataset.copy.json            the same bytes, for `focalstream repair`
  shards/                      only the pairs below: Lhotse treats every file in a Shar folder as a field
    cuts.000000.jsonl.gz       Lhotse Shar cuts, in the order of the tar
    codes.000000.tar           {member}.npy then {member}.json, one pair a cut
  index/
    codes.000000.npy           `INDEX_DTYPE`, one row a cut: random access into the tar
    codes.000000.tar.idx       Lhotse's index: little-endian uint64 offset of every pair, then the tar's size
    wids.json                  shard list of webdataset's indexed reader
  packed/
    codes.000000.bits          with --pack: the shard's tokens bit-packed, see `pipelines.format.packed`
  quarantine.jsonl             one line per cut that could not be tokenized
  work/                        only while a run is unfinished: plan, receipts, locks, temporary files
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.storage.folders import Folder, RemotePath
from tokenizer.errors import InputError
from tokenizer.files import write_atomically

FORMAT = "focalstream-tokens"
FORMAT_VERSION = 1

INDEX_DTYPE = np.dtype([("offset", "<u8"), ("tokens", "<u8")])
"""One row of `index/codes.%06d.npy`: `offset` is the byte in the tar where the cut's raw little-endian uint16 codes
begin (after tar and npy headers), `tokens` how many there are."""


@dataclass(frozen=True)
class Layout:
    """The paths of one dataset folder `out`, on disk or behind a URL."""

    out: Folder

    @property
    def dataset(self) -> Folder:
        return self.out / "dataset.json"

    @property
    def dataset_copy(self) -> Folder:
        return self.out / "dataset.copy.json"

    @property
    def quarantine(self) -> Folder:
        return self.out / "quarantine.jsonl"

    @property
    def shards(self) -> Folder:
        return self.out / "shards"

    @property
    def index(self) -> Folder:
        return self.out / "index"

    @property
    def packed(self) -> Folder:
        return self.out / "packed"

    @property
    def wids(self) -> Folder:
        return self.index / "wids.json"

    @property
    def work(self) -> Folder:
        return self.out / "work"

    @property
    def temporary(self) -> Folder:
        return self.work / "tmp"

    @property
    def receipts(self) -> Folder:
        return self.work / "receipts"

    def cuts_file(self, shard: int) -> Folder:
        return self.shards / f"cuts.{shard:06d}.jsonl.gz"

    def codes_tar(self, shard: int) -> Folder:
        return self.shards / f"codes.{shard:06d}.tar"

    def codes_index(self, shard: int) -> Folder:
        return self.index / f"codes.{shard:06d}.npy"

    def lhotse_index(self, shard: int) -> Folder:
        return self.index / f"codes.{shard:06d}.tar.idx"

    def packed_codes(self, shard: int) -> Folder:
        return self.packed / f"codes.{shard:06d}.bits"

    def name(self, path: Folder) -> str:
        """The path of a file of this dataset relative to OUT, as `dataset.json` has it: with `/` on every system."""
        whole, out = (str(place) if isinstance(place, RemotePath) else place.as_posix() for place in (path, self.out))
        return whole.removeprefix(out).lstrip("/")

    def write(self, path: Folder, data: bytes) -> None:
        """Make or replace a file of this dataset. It appears whole or not at all; until then it is in `temporary`,
        because readers of a shard folder treat every file in it as data.

        Raises:
            InputError: the folder is gone (nothing is made in its place), the disk is full, and so on.
        """
        if isinstance(path, RemotePath):
            path.write_bytes(data)
            return
        assert isinstance(self.temporary, Path)
        if not self.out.is_dir():
            raise self.removed()
        self.temporary.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data, self.temporary)

    def removed(self) -> InputError:
        return InputError(f"{self.out}: was removed while a run was writing there; give the same command again")

    def shard_files(self, shard: int) -> tuple[Folder, ...]:
        """Every file that may belong to one shard."""
        return (
            self.cuts_file(shard),
            self.codes_tar(shard),
            self.codes_index(shard),
            self.lhotse_index(shard),
            self.packed_codes(shard),
        )
