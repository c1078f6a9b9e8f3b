"""Datasets made from datasets: `merge` joins several of one codec, `split` divides one at random.

Cuts and tokens are copied into new shards and never encoded again, so neither audio nor codec is needed. A cut and its
name in the tar stay the same, except where that name is taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.bulk.finalize import finalize
from pipelines.bulk.ownership import only_run
from pipelines.bulk.plan import Sharding
from pipelines.bulk.stored_plan import Plan, PlannedShard, has_plan
from pipelines.dataset.token_dataset import TokenDataset
from pipelines.format.description import CodecEntry, Description, read_intact
from pipelines.format.layout import Layout
from pipelines.format.ledger import Quarantined, Receipt, quarantined_by_shard, write_receipt
from pipelines.format.member_ids import SeenIds, member_id
from pipelines.format.shards import make_shard, store_shard, stored_cuts
from pipelines.sources.cuts import PlannedCut
from pipelines.storage.folders import Folder, remove_tree
from pipelines.storage.leases import StillHeld
from tokenizer.errors import InputError

BY: dict[str, Callable[[PlannedCut], str]] = {
    "cut": lambda cut: cut.id,
    "recording": lambda cut: (cut.cut.get("recording") or {}).get("id") or cut.id,
    "speaker": lambda cut: next((s["speaker"] for s in cut.cut.get("supervisions") or [] if s.get("speaker")), cut.id),
}
"""What stays together in one part: cuts with the same key. A cut without speaker or recording is its own key."""


def merge(sources: Sequence[Folder], out: Folder, sharding: Sharding) -> Description:
    """Write the cuts of all `sources`, in order, as one dataset.

    A cut whose id has occurred before keeps it, but gets another name in the tar; `totals.duplicate_ids` counts them.

    Returns:
        The content of the new `dataset.json`.

    Raises:
        InputError: a source is not a finished dataset, of another codec than the first, or damaged; OUT is not free.
    """
    if len(sources) < 2:
        raise InputError(f"{len(sources)} datasets to merge; expected at least 2")
    refuse_nesting(out, sources)
    codec = TokenDataset(list(sources)).codec_entry  # raises unless all are of one codec
    descriptions = [read_intact(Layout(source)) for source in sources]
    made_from = {"merged": [_origin(source, found) for source, found in zip(sources, descriptions, strict=True)]}
    layout = Layout(out.absolute())
    with rewriting(layout) as still_held:
        writer = DatasetWriter(layout, codec, made_from, sharding, still_held)
        for source, description in zip(sources, descriptions, strict=True):
            copy_cuts(Layout(source), description, lambda cut: writer, lambda failed: writer)
        return writer.close()


def split(
    source: Folder, out: Folder, shares: Mapping[str, float], by: str, sharding: Sharding
) -> dict[str, Description]:
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
        raise InputError(f"{bad[0]!r} is not the name of a folder; name the parts as in train=0.9 test=0.1")
    refuse_nesting(out, [source])
    description = read_intact(Layout(source))
    origin = _origin(source, description)
    with contextlib.ExitStack() as stack:
        writers = {}
        for name, share in shares.items():
            layout = Layout((out / name).absolute())
            still_held = stack.enter_context(rewriting(layout))
            made_from = {"split": {**origin, "by": by, "part": name, "share": share}}
            writers[name] = DatasetWriter(layout, description.codec, made_from, sharding, still_held)
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


def copy_cuts(
    source: Layout,
    description: Description,
    writer_of_cut: Callable[[PlannedCut], DatasetWriter],
    writer_of_failure: Callable[[Quarantined], DatasetWriter],
) -> None:
    """Give every cut of a dataset, and every failed one, to the writer chosen for it.

    Raises:
        InputError: a shard or `quarantine.jsonl` is not as `dataset.json` describes it.
    """
    for entry in description.shards:
        if not entry.is_sound(source):
            raise InputError(f"{source.out}: shard {entry.shard} is damaged; `focalstream repair {source.out}` first")
        for cut, codes in stored_cuts(source, entry.shard):
            writer_of_cut(cut).add(cut, codes)
    failures = [failed for found in quarantined_by_shard(source).values() for failed in found]
    if len(failures) != description.totals.quarantined:
        raise InputError(f"{source.quarantine} is damaged; `focalstream repair {source.out}` first")
    for failed in failures:
        writer_of_failure(failed).add_quarantined(failed)


def _origin(source: Folder, description: Description) -> dict[str, Any]:
    return {"path": str(source.absolute()), "checksum": description.checksum}


class DatasetWriter:
    """Writes a dataset cut by cut; it holds the codes of one shard at a time.

    Args:
        layout: a folder that this process holds (`rewriting`).
        codec: of the datasets that the cuts come from.
        made_from: where the cuts come from, for `dataset.json`.
        sharding: when a shard is full, and whether to pack it.
        still_held: called before anything is written; raises when another run has taken over.
    """

    def __init__(
        self,
        layout: Layout,
        codec: CodecEntry,
        made_from: dict[str, Any],
        sharding: Sharding,
        still_held: StillHeld = lambda: None,
    ) -> None:
        self._layout, self._codec, self._made_from, self._sharding = layout, codec, made_from, sharding
        self._still_held = still_held
        self._cuts: list[tuple[PlannedCut, np.ndarray]] = []
        self._seconds = 0.0
        self._failures: list[Quarantined] = []
        self._shards: list[PlannedShard] = []
        self._receipts: list[Receipt] = []
        self._seen = SeenIds()

    def add(self, cut: PlannedCut, codes: np.ndarray) -> None:
        """The next cut. If its id has occurred before, it gets another name in the tar."""
        member = member_id(cut.id, self._seen.occurrence(cut.id))
        self._cuts.append((PlannedCut(cut.cut, member=member), codes))
        self._seconds += cut.seconds
        if self._sharding.is_full(len(self._cuts), self._seconds):
            self._end_shard()

    def add_quarantined(self, failed: Quarantined) -> None:
        """A cut that could not be tokenized."""
        self._failures.append(failed)

    def close(self) -> Description:
        """Write what is left, and `dataset.json`. Returns its content."""
        if self._cuts or self._failures:
            self._end_shard()
        self._still_held()
        plan = Plan(self._made_from, tuple(self._shards), self._seen.duplicates)
        return finalize(self._layout, plan, self._codec, self._receipts)

    def _end_shard(self) -> None:
        number, cuts = len(self._shards), [cut for cut, _ in self._cuts]
        made = make_shard(
            self._layout,
            number,
            cuts,
            [codes for _, codes in self._cuts],
            self._codec.token_rate,
            self._codec.bits_per_token if self._sharding.pack else None,
        )
        self._still_held()
        receipt = store_shard(self._layout, made)
        with_failures = replace(receipt, quarantined=tuple(self._failures))
        write_receipt(self._layout, with_failures)
        self._receipts.append(with_failures)
        self._shards.append(PlannedShard(len(cuts) + len(self._failures), round(self._seconds, 6)))
        self._cuts, self._seconds, self._failures = [], 0.0, []


@contextlib.contextmanager
def rewriting(layout: Layout) -> Iterator[StillHeld]:
    """Hold OUT for a `DatasetWriter`. Files of an earlier writer that was killed are removed, and so are those of this
    one if it fails.

    Raises:
        InputError: OUT holds a dataset, an unfinished run of `focalstream tokenize`, or files of others.
    """
    with only_run(layout) as still_held:
        if layout.dataset.exists() or has_plan(layout):
            raise InputError(f"{layout.out} holds a dataset or a run of `focalstream tokenize`; give another OUT")
        _clear(layout)
        try:
            yield still_held
        except BaseException:
            still_held()  # else they are those of another run, which has taken over
            _clear(layout)
            raise


def _clear(layout: Layout) -> None:
    for folder in (layout.shards, layout.index, layout.packed, layout.receipts, layout.temporary):
        remove_tree(folder)


def refuse_nesting(out: Folder, sources: Sequence[Folder]) -> None:
    """Raise InputError where OUT is one of the sources, or a folder inside one."""
    for source in sources:
        ours, theirs = (Path(place.resolve() if isinstance(place, Path) else str(place)) for place in (out, source))
        if theirs in (ours, *ours.parents):
            raise InputError(f"{out} is, or lies in, {source}, which is read; give another OUT")
