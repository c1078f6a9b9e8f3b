"""A finished shard read back: its pairs as they are, and its cuts as they were planned."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipelines.format.layout import Layout
from pipelines.sources.cuts import PlannedCut
from pipelines.storage.folders import Folder

Pair = tuple[str, np.ndarray, dict[str, Any], int]
"""(member id, codes, TemporalArray manifest, byte where the raw codes begin)."""


def read_pairs(path: Folder) -> Iterator[Pair]:
    """Every pair of a codes tar, in order. Raises ValueError where the members are no pairs."""
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        members = tar.getmembers()
        names = [member.name for member in members]
        for data, meta in zip(members[::2], members[1::2], strict=True):
            stem = data.name.removesuffix(".npy")
            if (data.name, meta.name) != (f"{stem}.npy", f"{stem}.json"):
                raise ValueError(f"members {names.index(data.name)} and on are {data.name}, {meta.name}: not a pair")
            file.seek(data.offset_data)
            stream = io.BytesIO(file.read(data.size))
            codes = np.load(stream, allow_pickle=False)
            file.seek(meta.offset_data)
            yield stem, codes, json.loads(file.read(meta.size)), data.offset_data + data.size - codes.nbytes


def stored_cuts(layout: Layout, shard: int) -> Iterator[tuple[PlannedCut, np.ndarray]]:
    """Each cut with its codes, uint16 [T]; `write_shard` makes the same bytes of them again.

    A mix comes back as the cut without recording that it became.
    """
    with layout.cuts_file(shard).open("rb") as file, gzip.open(file, "rt", encoding="utf-8") as lines:
        for line, (member, codes, _, _) in zip(lines, read_pairs(layout.codes_tar(shard)), strict=True):
            cut = json.loads(line)
            custom = {key: value for key, value in cut["custom"].items() if key not in ("cut_id", "codes")}
            yield PlannedCut({**cut, "id": cut["custom"]["cut_id"], "custom": custom}, member=member), codes
