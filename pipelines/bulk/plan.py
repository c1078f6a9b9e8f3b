"""Which cut goes to which shard: one pass over the input, stored before any work begins.

A shard is the unit of work, of retry and of resuming. Cuts keep the order of the manifest. `stored_plan` has the files.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.bulk.stored_plan import (
    Plan,
    PlannedShard,
    cut_list,
    cut_lists,
    has_plan,
    read_plan,
    write_cut_list,
    write_plan,
)
from pipelines.format.layout import Layout
from pipelines.format.member_ids import SeenIds, member_id
from pipelines.sources.cuts import PlannedCut, Selection, SourceCut
from pipelines.sources.manifests import content_digest, manifests_state, places_of, read_cuts
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


def load_or_make_plan(layout: Layout, identity: dict[str, Any], still_held: StillHeld = lambda: None) -> Plan:
    """The plan of an interrupted run, or a new one.

    Args:
        still_held: called before every change; raises when another run may be planning.

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
    return make_plan(layout, identity, still_held)


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


class SelectedCuts:
    """The cuts of the inputs that a selection takes, lazily, narrowed to its channel.

    Attributes:
        skipped: how many cuts it has left out so far.
    """

    def __init__(self, inputs: list[str], selection: Selection) -> None:
        self.skipped = 0
        self._selection = selection
        self._source = read_cuts(inputs, selection.access)

    def __iter__(self) -> SelectedCuts:
        return self

    def __next__(self) -> SourceCut:
        for item in self._source:
            if not self._selection.skips(item.seconds):
                return SourceCut(self._selection.narrowed(item.cut), item.audio, item.hosts)
            self.skipped += 1
        raise StopIteration


def make_plan(layout: Layout, identity: dict[str, Any], still_held: StillHeld = lambda: None) -> Plan:
    """Divide the input into shards, and store that. The same identity gives the same plan."""
    folder = cut_lists(layout)
    still_held()
    remove_tree(folder)  # cut lists of a plan that was never finished
    folder.mkdir(parents=True, exist_ok=True)
    try:
        plan = _divide(layout, identity, still_held)
        still_held()
    except BaseException:
        still_held()  # else they are those of another run, which has taken over
        remove_tree(folder)
        raise
    write_plan(layout, plan)
    return plan


def _divide(layout: Layout, identity: dict[str, Any], still_held: StillHeld) -> Plan:
    """The cut lists of all shards to disk."""
    sharding, seen, state = Sharding(**identity["sharding"]), SeenIds(), manifests_state(identity["input"]["paths"])
    source = SelectedCuts(identity["input"]["paths"], Selection(**identity.get("selection", {})))
    shards: list[PlannedShard] = []

    def shard_from(first: SourceCut) -> Iterator[PlannedCut]:
        cuts, seconds = 0, 0.0
        for item in itertools.chain([first], source):
            yield PlannedCut.of(item, member_id(item.cut["id"], seen.occurrence(item.cut["id"])))
            cuts, seconds = cuts + 1, seconds + item.seconds
            if sharding.is_full(cuts, seconds):
                break
        shards.append(PlannedShard(cuts, round(seconds, 6)))

    with ThreadPoolExecutor(WRITERS, thread_name_prefix="write-plan") as pool:
        pending: deque[Future[None]] = deque()
        while first := next(source, None):
            number, data = len(shards), cut_list(shard_from(first))
            still_held()
            pending.append(pool.submit(write_cut_list, layout, number, data))
            if len(pending) > WRITERS:
                pending.popleft().result()
        for written in pending:
            written.result()
    if not shards:
        skipped = f" but {source.skipped} that are too short or too long" if source.skipped else ""
        raise InputError(f"{', '.join(identity['input']['paths'])}: no cuts in it{skipped}; expected at least one")
    return Plan(identity, tuple(shards), seen.duplicates, source.skipped, state)
