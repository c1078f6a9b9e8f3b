"""Which cut goes to which shard: one pass over the input, stored before any work begins.

A shard is the unit of work, of retry and of resuming. Cuts keep the order of the manifest. `stored_plan` has the files.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.bulk.planned_lines import planned_lines
from pipelines.bulk.stored_plan import (
    Plan,
    PlannedShard,
    cut_line,
    cut_list,
    cut_lists,
    has_plan,
    read_plan,
    write_cut_list,
    write_plan,
)
from pipelines.format.layout import Layout
from pipelines.format.member_ids import SeenIds, member_id
from pipelines.sources.cuts import Selection
from pipelines.sources.manifests import content_digest, manifests_state, places_of
from pipelines.storage.folders import remove_tree, sizes_in
from pipelines.storage.leases import StillHeld
from tokenizer.errors import InputError
from tokenizer.runs.settings import differences

WRITERS = 8  # cut lists that are synced or uploaded at the same time

NAMES = {
    "input.paths": "the input",
    "input.sha256": "the content of the input",
    "sharding.cuts": "--shard-cuts",
    "sharding.hours": "--shard-hours",
    "sharding.pack": "--pack",
    "selection.min_seconds": "--min-seconds",
    "selection.max_seconds": "--max-seconds",
    "selection.channel": "--channel",
    "encoding.batch_seconds": "--batch-seconds",
    "encoding.device_type": "--device",
    "encoding.batch_shards": "--batch-shards",
    "encoding.precision": "--precision",
    "codec": "--codec (its fingerprint)",
}
"""What users call the settings that decide a run."""


@dataclass(frozen=True)
class Sharding:
    """When a shard is full: at `cuts` cuts or at `hours` hours of audio. Exactly one of them is set.

    With `pack` each shard has a bit-packed file of its tokens as well.
    """

    cuts: int | None = None
    hours: float | None = None
    pack: bool = False

    def __post_init__(self) -> None:
        if (self.cuts is None) == (self.hours is None):
            raise InputError(f"shard_cuts is {self.cuts} and shard_hours is {self.hours}: expected exactly one of them")
        if self.cuts is not None and self.cuts < 1:
            raise InputError(f"shard_cuts is {self.cuts}, expected at least 1")
        if self.hours is not None and not (0 < self.hours < math.inf):
            raise InputError(f"shard_hours is {self.hours}, expected a positive number of hours")

    def is_full(self, cuts: int, seconds: float) -> bool:
        return cuts >= self.cuts if self.cuts is not None else seconds >= 3600 * (self.hours or 0)


def identify(
    inputs: list[str],
    selection: Selection,
    sharding: Sharding,
    encoding: dict[str, Any],
    fingerprint: str,
    plan: Plan | None = None,
) -> dict[str, Any]:
    """What a run is made from, without reading the audio. Two runs with equal identities write equal shards.

    Args:
        inputs: of `find_inputs`.
        encoding: of `Encoding.to_dict`.
        fingerprint: of the codec.
        plan: of an earlier run; manifests that were not written since are not read again.
    """
    chosen = selection.to_dict()
    known = None
    if plan is not None and plan.input_state and plan.identity["input"]["paths"] == inputs:
        known = plan.identity["input"]["sha256"] if manifests_state(inputs) == plan.input_state else None
    return {
        "input": {"paths": inputs, "sha256": known or content_digest(inputs)},
        **({"selection": chosen} if chosen else {}),
        "sharding": {name: value for name, value in asdict(sharding).items() if value},
        "encoding": encoding,
        "codec": fingerprint,
    }


def load_or_make_plan(
    layout: Layout, identity: dict[str, Any], still_held: StillHeld = lambda: None, processes: int = 1
) -> Plan:
    """The plan of an interrupted run, or a new one.

    Args:
        still_held: called before every change; raises when another run may be planning.
        processes: that read a large input.

    Raises:
        InputError: the folder holds a run made from something else, or files that belong to no run.
    """
    if has_plan(layout):
        plan = read_plan(layout)
        refuse_difference(layout, plan.identity, identity)
        return plan
    for folder in (layout.shards, layout.index, layout.packed):
        if sizes_in(folder):
            raise InputError(f"{folder} has files that belong to no known run; give another OUT or remove that folder")
    return make_plan(layout, identity, still_held, processes)


def refuse_difference(layout: Layout, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise InputError naming every option in which a folder's run differs from the one asked for."""
    found = differences(stored, wanted)
    if found and found[0].name == "input.paths" and places_of(found[0].stored) == places_of(found[0].wanted):
        found = found[1:]  # the matches of a glob, which earlier versions stored one by one
    if found:
        raise InputError(
            f"{layout.out} holds a run made from something else: "
            f"{'; '.join(difference.sentence(NAMES) for difference in found)}. Give the same input and options to "
            "continue it, or another OUT for a new one"
        )


def make_plan(
    layout: Layout, identity: dict[str, Any], still_held: StillHeld = lambda: None, processes: int = 1
) -> Plan:
    """Divide the input into shards, and store that. The same identity gives the same plan, however many processes read
    the input."""
    folder = cut_lists(layout)
    still_held()
    remove_tree(folder)  # cut lists of a plan that was never finished
    folder.mkdir(parents=True, exist_ok=True)
    try:
        plan = _divide(layout, identity, still_held, processes)
        still_held()
    except BaseException:
        still_held()  # else they are those of another run, which has taken over
        remove_tree(folder)
        raise
    write_plan(layout, plan)
    return plan


def _divide(layout: Layout, identity: dict[str, Any], still_held: StillHeld, processes: int) -> Plan:
    """The cut lists of all shards to disk."""
    sharding, seen, state = Sharding(**identity["sharding"]), SeenIds(), manifests_state(identity["input"]["paths"])
    shards: list[PlannedShard] = []
    cuts, seconds, skipped = list[str](), 0.0, 0

    with (
        ThreadPoolExecutor(WRITERS, thread_name_prefix="write-plan") as pool,
        contextlib.closing(
            planned_lines(identity["input"]["paths"], Selection(**identity.get("selection", {})), processes)
        ) as blocks,
    ):
        pending: deque[Future[None]] = deque()

        def close_shard() -> None:
            still_held()
            pending.append(pool.submit(_write, layout, len(shards), tuple(cuts)))
            shards.append(PlannedShard(len(cuts), round(seconds, 6)))
            if len(pending) > WRITERS:
                pending.popleft().result()

        for block in blocks:
            skipped += block.skipped
            occurrences = seen.occurrences(block.ids)
            for cut_id, member, occurrence, length, rest in zip(
                block.ids, block.members, occurrences, block.seconds, block.rests, strict=True
            ):
                cuts.append(cut_line(member if occurrence == 1 else member_id(cut_id, occurrence), rest))
                seconds += length
                if sharding.is_full(len(cuts), seconds):
                    close_shard()
                    cuts, seconds = [], 0.0
        if cuts:
            close_shard()
        for written in pending:
            written.result()
    if not shards:
        but = f" but {skipped} that are too short or too long" if skipped else ""
        raise InputError(f"{', '.join(identity['input']['paths'])}: no cuts in it{but}; expected at least one")
    return Plan(identity, tuple(shards), seen.duplicates, skipped, state)


def _write(layout: Layout, shard: int, lines: tuple[str, ...]) -> None:
    write_cut_list(layout, shard, cut_list(lines))
