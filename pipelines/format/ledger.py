"""The ledger of a run: a receipt for each finished shard, and a reason for each cut that could not be tokenized."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.format.layout import Layout
from pipelines.sources.cuts import CutError, SourceCut, describe_source
from pipelines.storage.folders import Folder, sizes_in
from pipelines.storage.stable_bytes import json_bytes

MAX_DETAIL = 300  # characters
RECEIPTS_AT_A_TIME = 16


@dataclass(frozen=True)
class Quarantined:
    """One line of `quarantine.jsonl`, where the number of its shard stands before it.

    `reason` is a phrase to group by: "missing file", "unreadable", "zero length", "truncated", "not finite",
    "not audio", "no such channel", "impossible start", "too long", "encoder failed", "killed its worker". `error` is
    the class of the exception, `detail` its message.
    """

    id: str
    source: str
    reason: str
    error: str
    detail: str
    attempts: int


def quarantine(item: SourceCut, error: Exception, attempts: int) -> Quarantined:
    """The ledger entry for a cut whose last attempt raised `error`. It is the same in every run."""
    return Quarantined(item.id, describe_source(item), _reason(error), type(error).__name__, _detail(error), attempts)


def _reason(error: Exception) -> str:
    if isinstance(error, CutError):
        return error.reason
    return "missing file" if isinstance(error, FileNotFoundError) else "unreadable"


def _detail(error: Exception) -> str:
    # libsndfile's own words, without the name or (for audio inside a tar) the memory address of what it read
    text = getattr(error, "error_string", None) or str(error)
    first_line = next(iter(text.strip().splitlines()), "")
    return re.sub(r" at 0x[0-9a-f]+", "", first_line)[:MAX_DETAIL]


@dataclass(frozen=True)
class Receipt:
    """What became of one planned shard. Its presence means that all files in `files` are whole.

    A shard whose cuts were all quarantined has a receipt but no files: an empty tar breaks readers.

    Attributes:
        files: by path relative to OUT, {"bytes": size, "sha256": hex}.
        seconds: audio tokenized.
    """

    shard: int
    files: dict[str, dict[str, Any]]
    cuts: int
    tokens: int
    seconds: float
    quarantined: tuple[Quarantined, ...]


def write_receipt(layout: Layout, receipt: Receipt) -> None:
    """Say that a shard is done."""
    layout.write(_receipt_path(layout, receipt.shard), json_bytes(asdict(receipt)))


def read_receipts(layout: Layout, shards: Sequence[int]) -> list[Receipt | None]:
    """The receipt of each of these shards; None where a shard is still to be done (again, if a file of it is gone)."""
    there = sizes_in(layout.receipts)
    sizes = {
        f"{folder.name}/{name}": size
        for folder in (layout.shards, layout.index, layout.packed)
        for name, size in sizes_in(folder).items()
    }

    def read(shard: int) -> Receipt | None:
        path = _receipt_path(layout, shard)
        if path.name not in there:
            return None
        content = json.loads(path.read_text(encoding="ascii"))
        content["quarantined"] = tuple(Quarantined(**entry) for entry in content["quarantined"])
        receipt = Receipt(**content)
        whole = all(sizes.get(name) == file["bytes"] for name, file in receipt.files.items())
        return receipt if whole else None

    with ThreadPoolExecutor(RECEIPTS_AT_A_TIME) as pool:  # behind a URL each takes a while
        return list(pool.map(read, shards))


def _receipt_path(layout: Layout, shard: int) -> Folder:
    return layout.receipts / f"{shard:06d}.json"
