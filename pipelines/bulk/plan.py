"""Which cut goes to which shard: one pass over the input, stored before any work begins.

    OUT/work/plan.json               what the run is made from, and the cuts and seconds of each shard; written last
    OUT/work/plan/000000.jsonl.gz    the cuts of one shard, all a worker has to read

A shard is the unit of work, of retry and of resuming. Cuts keep the order of the manifest.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.format.layout import Layout
from pipelines.format.member_ids import member_id
from pipelines.format.seen_ids import SeenIds
from pipelines.sources.cuts import PlannedCut, Selection, SourceCut, TarSlice
from pipelines.sources.manifests import content_digest, read_cuts
from pipelines.storage.folders import Folder, remove_tree, sizes_in
from pipelines.storage.stable_bytes import json_bytes
from tokenizer.errors import InputError
from tokenizer.files import sync_folder

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
    "codec": "--codec (its fingerprint)",
}
"""What decides a run, in the words of the one who gives it."""


@dataclass(frozen=True)
class Sharding:
    """When a shard is full: at `cuts` cuts or at `hours` hours of audio. Exactly one of them is set.

    With `pack` each shard has a bit-packed file of its codes as well.
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


@dataclass(frozen=True)
class PlannedShard:
    cuts: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """A stored plan.

    `identity` is all that decides the bytes of the shards: input, selection, sharding, encoding, codec.
    `skipped` counts the cuts of the input that the selection leaves out.
    """

    identity: dict[str, Any]
    shards: tuple[PlannedShard, ...]
    duplicate_ids: int
    skipped: int = 0

    @property
    def cuts(self) -> int:
        return sum(shard.cuts for shard in self.shards)

    @property
    def seconds(self) -> float:
        return math.fsum(shard.seconds for shard in self.shards)


def identify(
    inputs: list[str], selection: Selection, sharding: Sharding, encoding: dict[str, Any], codec: dict[str, Any]
) -> dict[str, Any]:
    """What a run is made from, without reading the audio. Two runs with equal identities write equal shards.

    Args:
        inputs: of `find_inputs`.
        codec: of `describe_codec`.
    """
    chosen = selection.to_dict()
    return {
        "input": {"paths": inputs, "sha256": content_digest(inputs)},
        **({"selection": chosen} if chosen else {}),
        "sharding": {name: value for name, value in asdict(sharding).items() if value},
        "encoding": encoding,
        "codec": codec["fingerprint"],
    }


def has_plan(layout: Layout) -> bool:
    """Whether an unfinished run with a whole plan lies there."""
    return _plan_file(layout).exists()


def stored_identity(layout: Layout) -> dict[str, Any] | None:
    """What the run in a folder is made from, finished or not; None where there is none that can be read."""
    for path, name in ((layout.dataset, "made_from"), (_plan_file(layout), "identity")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return json.loads(path.read_text(encoding="ascii"))[name]
    return None


def load_or_make_plan(layout: Layout, identity: dict[str, Any]) -> Plan:
    """The plan of an interrupted run, or a new one.

    Raises:
        InputError: the folder holds a run made from something else, or files that belong to no run.
    """
    if has_plan(layout):
        content = json.loads(_plan_file(layout).read_text(encoding="ascii"))
        refuse_difference(layout, content["identity"], identity)
        shards = tuple(PlannedShard(**shard) for shard in content["shards"])
        return Plan(content["identity"], shards, content["duplicate_ids"], content.get("skipped", 0))
    for folder in (layout.shards, layout.index, layout.packed):
        if sizes_in(folder):
            raise InputError(f"{folder} has files that belong to no known run; give another OUT or remove that folder")
    return make_plan(layout, identity)


def refuse_difference(layout: Layout, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise InputError naming every option in which a folder's run differs from the one asked for."""
    before, now = dict(_flat(stored)), dict(_flat(wanted))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if names:
        differences = "; ".join(
            f"{NAMES.get(name, name)} was {_given(before.get(name))}, now {_given(now.get(name))}" for name in names
        )
        raise InputError(
            f"{layout.out} holds a run made from something else: {differences}. Give the same input and options to "
            "continue it, or another OUT for a new one"
        )


class SelectedCuts:
    """The cuts of the inputs that a selection takes, lazily, narrowed to its channel.

    Attributes:
        skipped: how many it has left out so far.
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
                return SourceCut(self._selection.narrowed(item.cut), item.audio)
            self.skipped += 1
        raise StopIteration


def shard_cuts(layout: Layout, shard: int) -> list[PlannedCut]:
    """The cuts of one shard, in order."""
    lines = gzip.decompress(_cut_list(layout, shard).read_bytes()).splitlines()
    return [_planned(json.loads(line)) for line in lines]


def make_plan(layout: Layout, identity: dict[str, Any]) -> Plan:
    """Divide the input into shards, and store that. The same identity gives the same plan."""
    folder = layout.work / "plan"
    remove_tree(folder)  # cut lists of a plan that was never finished
    folder.mkdir(parents=True)
    try:
        plan = _divide(layout, identity)
    except BaseException:
        remove_tree(folder)
        raise
    if isinstance(folder, Path):
        sync_folder(folder)
    layout.write(_plan_file(layout), json_bytes(asdict(plan)))
    return plan


def _divide(layout: Layout, identity: dict[str, Any]) -> Plan:
    """The cut lists of all shards to disk."""
    sharding, seen = Sharding(**identity["sharding"]), SeenIds()
    source = SelectedCuts(identity["input"]["paths"], Selection(**identity.get("selection", {})))
    shards: list[PlannedShard] = []

    def lines(first: SourceCut) -> Iterator[str]:
        cuts, seconds = 0, 0.0
        for item in itertools.chain([first], source):
            member = member_id(item.cut["id"], seen.occurrence(item.cut["id"]))
            yield json.dumps(_stored(PlannedCut(item.cut, item.audio, member=member))) + "\n"
            cuts, seconds = cuts + 1, seconds + item.seconds
            if sharding.is_full(cuts, seconds):
                break
        shards.append(PlannedShard(cuts, round(seconds, 6)))

    with ThreadPoolExecutor(WRITERS, thread_name_prefix="write-plan") as pool:
        pending: deque[Future[None]] = deque()
        while first := next(source, None):
            number, data = len(shards), _compressed(lines(first))
            pending.append(pool.submit(_write_cut_list, _cut_list(layout, number), data))
            if len(pending) > WRITERS:
                pending.popleft().result()
        for written in pending:
            written.result()
    if not shards:
        skipped = f" but {source.skipped} that are too short or too long" if source.skipped else ""
        raise InputError(f"{', '.join(identity['input']['paths'])}: no cuts in it{skipped}; expected at least one")
    return Plan(identity, tuple(shards), seen.duplicates, source.skipped)


def _plan_file(layout: Layout) -> Folder:
    return layout.work / "plan.json"


def _cut_list(layout: Layout, shard: int) -> Folder:
    return layout.work / "plan" / f"{shard:06d}.jsonl.gz"


def _compressed(lines: Iterable[str]) -> bytes:
    buffer = io.BytesIO()
    file = gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=buffer, mtime=0)
    with io.TextIOWrapper(file, encoding="ascii") as text:
        text.writelines(lines)
    return buffer.getvalue()


def _write_cut_list(path: Folder, data: bytes) -> None:
    """A cut list, synced to disk: plan.json promises that it is there."""
    path.write_bytes(data)
    if isinstance(path, Path):
        with open(path, "rb") as written:
            os.fsync(written.fileno())


def _stored(planned: PlannedCut) -> dict[str, Any]:
    entry: dict[str, Any] = {"member": planned.member, "cut": planned.cut}
    if planned.audio is not None:
        entry["audio"] = asdict(planned.audio)
    return entry


def _planned(entry: dict[str, Any]) -> PlannedCut:
    audio = TarSlice(**entry["audio"]) if "audio" in entry else None
    return PlannedCut(entry["cut"], audio, member=entry["member"])


def _given(value: Any) -> str:
    return "not given" if value is None else str(value)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value
