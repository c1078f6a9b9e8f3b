"""Datasets made of datasets: cuts and codes as they are, in new shards. What `merge` and `split` have in common.

Codes are never made anew, so neither audio nor codec is needed; a cut, its codes and its name in the tar stay as they
are, except where a name is there already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.bulk.finalize import finalize
from pipelines.bulk.ownership import only_run
from pipelines.bulk.plan import Plan, PlannedShard, Sharding, has_plan
from pipelines.format.layout import Layout
from pipelines.format.ledger import Quarantined, Receipt, write_receipt
from pipelines.format.member_ids import member_id
from pipelines.format.seen_ids import SeenIds
from pipelines.format.shards import write_shard
from pipelines.sources.cuts import PlannedCut
from pipelines.storage.folders import remove_tree
from tokenizer.errors import InputError


class DatasetWriter:
    """Writes a dataset cut by cut; it holds the codes of one shard at a time.

    Args:
        layout: a folder that this process holds (`rewriting`).
        codec: the entry `codec` of the datasets that the cuts come from.
        made_from: what `dataset.json` is to say of where the cuts come from.
        sharding: when a shard is full, and whether to pack it.
    """

    def __init__(self, layout: Layout, codec: dict[str, Any], made_from: dict[str, Any], sharding: Sharding) -> None:
        self._layout, self._codec, self._made_from, self._sharding = layout, codec, made_from, sharding
        self._cuts: list[tuple[PlannedCut, np.ndarray]] = []
        self._seconds = 0.0
        self._failures: list[Quarantined] = []
        self._shards: list[PlannedShard] = []
        self._receipts: list[Receipt] = []
        self._seen = SeenIds()

    def add(self, cut: PlannedCut, codes: np.ndarray) -> None:
        """The next cut. Where its id has come by, it gets a name of its own in the tar."""
        member = member_id(cut.id, self._seen.occurrence(cut.id))
        self._cuts.append((PlannedCut(cut.cut, member=member), codes))
        self._seconds += cut.seconds
        if self._sharding.is_full(len(self._cuts), self._seconds):
            self._end_shard()

    def add_quarantined(self, entry: Quarantined) -> None:
        """A cut that could not be tokenized."""
        self._failures.append(entry)

    def close(self) -> dict[str, Any]:
        """Write what is left, and `dataset.json`. Returns its content."""
        if self._cuts or self._failures:
            self._end_shard()
        plan = Plan(self._made_from, tuple(self._shards), self._seen.duplicates)
        return finalize(self._layout, plan, self._codec, self._receipts)

    def _end_shard(self) -> None:
        number, cuts = len(self._shards), [cut for cut, _ in self._cuts]
        receipt = write_shard(
            self._layout,
            number,
            cuts,
            [codes for _, codes in self._cuts],
            self._codec["token_rate"],
            self._codec["bits_per_token"] if self._sharding.pack else None,
        )
        with_failures = Receipt(**{**vars(receipt), "quarantined": tuple(self._failures)})
        write_receipt(self._layout, with_failures)
        self._receipts.append(with_failures)
        self._shards.append(PlannedShard(len(cuts) + len(self._failures), round(self._seconds, 6)))
        self._cuts, self._seconds, self._failures = [], 0.0, []


@contextlib.contextmanager
def rewriting(layout: Layout) -> Iterator[None]:
    """Hold OUT for a `DatasetWriter`. What an earlier one left there that was killed is removed, and so is what this
    one leaves that fails.

    Raises:
        InputError: OUT holds a dataset, an unfinished run of `focalstream tokenize`, or files of others.
    """
    with only_run(layout):
        if layout.dataset.exists() or has_plan(layout):
            raise InputError(f"{layout.out} holds a dataset or a run of `focalstream tokenize`; give another OUT")
        _clear(layout)
        try:
            yield
        except BaseException:
            _clear(layout)
            raise


def _clear(layout: Layout) -> None:
    for folder in (layout.shards, layout.index, layout.packed, layout.receipts, layout.temporary):
        remove_tree(folder)


def refuse_nesting(out: Path, sources: list[Path]) -> None:
    """Raise InputError where OUT is one of the datasets that are read, or a folder in one."""
    for source in sources:
        if out.resolve() == source.resolve() or source.resolve() in out.resolve().parents:
            raise InputError(f"{out} is, or lies in, {source}, which is read; give another OUT")
