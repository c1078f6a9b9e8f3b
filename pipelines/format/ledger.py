"""The records of a run: a receipt for each finished shard, and a reason for each cut that could not be tokenized."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np

from pipelines.format.layout import Layout
from pipelines.sources.cuts import CutError, SourceCut, describe_source
from pipelines.storage.folders import Folder, sizes_in
from pipelines.storage.stable_bytes import StoredFile, json_bytes, json_lines
from tokenizer.errors import InputError

MAX_DETAIL = 300  # characters
RECEIPTS_AT_A_TIME = 64


@dataclass(frozen=True)
class Quarantined:
    """One line of `quarantine.jsonl`, which also states the shard, first.

    `reason` is a phrase to group by: "missing file", "unreadable", "zero length", "truncated", "damaged",
    "not finite", "not audio", "wrong manifest", "refused", "no such channel", "impossible start", "too long",
    "encoder failed", "killed its worker". `error` is the class of the exception, `detail` its message.
    """

    id: str
    source: str
    reason: str
    error: str
    detail: str
    attempts: int


Outcome = np.ndarray | Quarantined
"""What became of a cut: its tokens, uint16 [T], or why there are none."""


def quarantine(item: SourceCut, error: Exception, attempts: int) -> Quarantined:
    """The line for a cut whose last attempt raised `error`; the same in every run."""
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
        files: by path relative to OUT.
        seconds: audio tokenized.
    """

    shard: int
    files: dict[str, StoredFile]
    cuts: int
    tokens: int
    seconds: float
    quarantined: tuple[Quarantined, ...]


def write_receipt(layout: Layout, receipt: Receipt) -> None:
    """Record that a shard is done."""
    layout.write(_receipt_path(layout, receipt.shard), json_bytes(asdict(receipt)))


def read_receipts(layout: Layout, shards: Sequence[int]) -> list[Receipt | None]:
    """The receipt of each of these shards; None where the shard is to be done (again): there is no receipt, it is
    damaged, or a file that it lists is missing or has another size."""
    there = sizes_in(layout.receipts)
    if not any(_receipt_path(layout, shard).name in there for shard in shards):
        return [None] * len(shards)  # without a look at the files of all other shards
    sizes = {
        f"{folder.name}/{name}": size
        for folder in (layout.shards, layout.index, layout.packed)
        for name, size in sizes_in(folder).items()
    }

    def read(shard: int) -> Receipt | None:
        path = _receipt_path(layout, shard)
        if path.name not in there:
            return None
        try:
            content = json.loads(path.read_text(encoding="ascii"))
            content["files"] = {name: StoredFile(**stored) for name, stored in content["files"].items()}
            content["quarantined"] = tuple(Quarantined(**failed) for failed in content["quarantined"])
            receipt = Receipt(**content)
        except FileNotFoundError:  # the part that has just finished the dataset removed it
            return None
        except InputError:  # the store does not answer
            raise
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        whole = all(sizes.get(name) == stored.bytes for name, stored in receipt.files.items())
        return receipt if whole else None

    with ThreadPoolExecutor(RECEIPTS_AT_A_TIME) as pool:  # behind a URL each takes a while
        return list(pool.map(read, shards))


def remove_receipt(layout: Layout, shard: int) -> None:
    """Have a shard done again."""
    _receipt_path(layout, shard).unlink(missing_ok=True)


def shards_with_receipts(layout: Layout, shards: Sequence[int] | None = None) -> set[int]:
    """Which of these shards have a receipt, whatever is in it. None: all that have one, by one listing."""
    if shards is not None:
        with ThreadPoolExecutor(RECEIPTS_AT_A_TIME) as pool:
            there = pool.map(lambda shard: _receipt_path(layout, shard).exists(), shards)
            return {shard for shard, exists in zip(shards, there, strict=True) if exists}
    names = (name.removesuffix(".json") for name in sizes_in(layout.receipts))
    return {int(name) for name in names if name.isdecimal()}


def _receipt_path(layout: Layout, shard: int) -> Folder:
    return layout.receipts / f"{shard:06d}.json"


def quarantine_lines(receipts: Sequence[Receipt]) -> bytes:
    """The content of `quarantine.jsonl`."""
    return json_lines({"shard": receipt.shard, **asdict(one)} for receipt in receipts for one in receipt.quarantined)


def read_quarantine(layout: Layout) -> Iterator[tuple[int | None, Quarantined]]:
    """The lines of `quarantine.jsonl`: the shard of each cut (None: version 0.1.0 did not write it), and what failed.

    Raises:
        OSError, ValueError, TypeError: the file cannot be read or is damaged.
    """
    with layout.quarantine.open("rb") as lines:
        for line in lines:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"a line is {type(record).__name__}, expected an object")
            yield record.pop("shard", None), Quarantined(**record)


def quarantined_by_shard(layout: Layout) -> dict[int, list[Quarantined]]:
    """What failed in each shard. Raises as `read_quarantine` does, and InputError where a line names no shard."""
    found: dict[int, list[Quarantined]] = {}
    for shard, failed in read_quarantine(layout):
        if shard is None:
            raise InputError(
                f"{layout.quarantine} does not say in which shard a cut was, as in version 0.1.0; tokenize again into "
                "another OUT"
            )
        found.setdefault(shard, []).append(failed)
    return found
