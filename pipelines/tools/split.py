"""One dataset divided at random into several, the same way every time."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelines.bulk.plan import Sharding
from pipelines.dataset.token_dataset import read_description
from pipelines.format.layout import Layout
from pipelines.sources.cuts import PlannedCut
from pipelines.tools.merge import copy_cuts
from pipelines.tools.rewrite import DatasetWriter, refuse_nesting, rewriting
from tokenizer.errors import InputError

BY: dict[str, Callable[[PlannedCut], str]] = {
    "cut": lambda cut: cut.id,
    "recording": lambda cut: (cut.cut.get("recording") or {}).get("id") or cut.id,
    "speaker": lambda cut: next((s["speaker"] for s in cut.cut.get("supervisions") or [] if s.get("speaker")), cut.id),
}
"""What stays together. A cut that does not say its speaker or recording stays by itself."""


def split(source: Path, out: Path, shares: Mapping[str, float], by: str, sharding: Sharding) -> dict[str, Any]:
    """Write OUT/NAME for each name in `shares`, together all cuts of `source`.

    A hash of the cut's id (or speaker, or recording) decides where it goes: whatever else is in the dataset, and in
    every version of it, a speaker of "test" stays in "test". So the parts have about the size of their share, and only
    about. Quarantined cuts are divided by their ids.

    Args:
        shares: of all cuts, by the name of the part; they add up to 1.
        by: a key of `BY`.

    Returns:
        The new `dataset.json` of each part, by name.

    Raises:
        InputError: shares that make no sense, a damaged source, an OUT that is not free.
    """
    if not shares or any(share <= 0 for share in shares.values()) or not math.isclose(sum(shares.values()), 1.0):
        given = " ".join(f"{name}={share:g}" for name, share in shares.items())
        raise InputError(f"the shares are {given or 'none'}: expected positive numbers that add up to 1")
    if bad := [name for name in shares if not name or Path(name).name != name or name == ".."]:
        raise InputError(f"{bad[0]!r} is no name of a folder; name the parts as in train=0.9 test=0.1")
    refuse_nesting(out, [source])
    description = read_description(Layout(source))
    origin = {"path": str(source.absolute()), "checksum": description["checksum"]}
    with contextlib.ExitStack() as stack:
        writers = {}
        for name, share in shares.items():
            layout = Layout((out / name).absolute())
            stack.enter_context(rewriting(layout))
            made_from = {"split": {**origin, "by": by, "part": name, "share": share}}
            writers[name] = DatasetWriter(layout, description["codec"], made_from, sharding)
        copy_cuts(
            Layout(source),
            description,
            lambda cut: writers[part_of(BY[by](cut), shares)],
            lambda failed: writers[part_of(failed.id, shares)],
        )
        return {name: writer.close() for name, writer in writers.items()}


def part_of(key: str, shares: Mapping[str, float]) -> str:
    """The part that a key belongs to."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    ends = itertools.accumulate(shares.values())
    return next((name for name, end in zip(shares, ends, strict=True) if point < end), list(shares)[-1])
