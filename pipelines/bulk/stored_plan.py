"""The files of the plan of an unfinished run: written by `pipelines.bulk.plan`, read by every worker.

OUT/work/plan.json               what the run is made from, and the cuts and seconds of each shard; written last
OUT/work/plan/000000.jsonl.gz    the cuts of one shard; a worker reads nothing else
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.format.description import read_description
from pipelines.format.layout import Layout
from pipelines.sources.cuts import PlannedCut, SourceCut
from pipelines.sources.pieces import audio_place
from pipelines.storage.folders import Folder
from pipelines.storage.stable_bytes import gunzipped, gzip_bytes, json_bytes
from tokenizer.errors import InputError
from tokenizer.files import sync_folder


@dataclass(frozen=True)
class PlannedShard:
    cuts: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """A stored plan.

    `identity` is all that decides the bytes of the shards: input, selection, sharding, encoding, codec.
    `skipped` counts the cuts of the input that the selection leaves out.
    `input_state` is that of `manifests_state` before the input was read; None where there is none.
    """

    identity: dict[str, Any]
    shards: tuple[PlannedShard, ...]
    duplicate_ids: int
    skipped: int = 0
    input_state: str | None = None

    @property
    def cuts(self) -> int:
        return sum(shard.cuts for shard in self.shards)

    @property
    def seconds(self) -> float:
        return math.fsum(shard.seconds for shard in self.shards)


def has_plan(layout: Layout) -> bool:
    """Whether the folder holds an unfinished run with a complete plan."""
    return _plan_file(layout).exists()


def stored_identity(layout: Layout) -> dict[str, Any] | None:
    """What the run in a folder is made from, finished or not; None where there is none that can be read."""
    with contextlib.suppress(InputError, OSError):
        return read_description(layout).made_from
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return json.loads(_plan_file(layout).read_text(encoding="ascii"))["identity"]
    return None


def read_plan(layout: Layout) -> Plan:
    """The plan that `write_plan` wrote. Raises InputError where its file is damaged."""
    with _refusing_damage(layout, _plan_file(layout)):
        content = json.loads(_plan_file(layout).read_text(encoding="ascii"))
        shards = tuple(PlannedShard(**shard) for shard in content["shards"])
        skipped, state = content.get("skipped", 0), content.get("input_state")
        return Plan(dict(content["identity"]), shards, content["duplicate_ids"], skipped, state)


def write_plan(layout: Layout, plan: Plan) -> None:
    """Write `plan.json`, which promises that the cut lists of all shards are on disk."""
    folder = cut_lists(layout)
    if isinstance(folder, Path):
        sync_folder(folder)
    layout.write(_plan_file(layout), json_bytes(asdict(plan)))


def shard_cuts(layout: Layout, shard: int) -> list[PlannedCut]:
    """The cuts of one shard, in order. Raises InputError where their file is damaged or missing."""
    with _refusing_damage(layout, _cut_list_file(layout, shard)):
        lines = gunzipped(_cut_list_file(layout, shard).read_bytes()).splitlines()
        return [_planned(json.loads(line)) for line in lines]


def cut_list(lines: Iterable[str]) -> bytes:
    """The content of the cut list of one shard, from `cut_line` of each of its cuts."""
    # Level 1: the lists are read once, soon after.
    return gzip_bytes("".join(lines).encode("ascii"), level=1)


def cut_line(member: str, rest: str) -> str:
    """The line of a cut: its name in the tar, and `line_of` it."""
    return f'{{"member": "{member}", {rest}\n'


def write_cut_list(layout: Layout, shard: int, data: bytes) -> None:
    """Write the cut list of a shard, synced to disk."""
    path = _cut_list_file(layout, shard)
    path.write_bytes(data)
    if isinstance(path, Path):
        with open(path, "r+b") as written:  # Windows syncs only what may be written
            os.fsync(written.fileno())


def cut_lists(layout: Layout) -> Folder:
    """The folder of all cut lists."""
    return layout.work / "plan"


@contextlib.contextmanager
def _refusing_damage(layout: Layout, path: Folder) -> Iterator[None]:
    try:
        yield
    except InputError:  # the store does not answer
        raise
    except (FileNotFoundError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: the plan of an unfinished run is damaged ({type(error).__name__}: {error}); remove {layout.out} "
            "and give the same command again"
        ) from None


def _plan_file(layout: Layout) -> Folder:
    return layout.work / "plan.json"


def _cut_list_file(layout: Layout, shard: int) -> Folder:
    return cut_lists(layout) / f"{shard:06d}.jsonl.gz"


def line_of(item: SourceCut) -> str:
    """The line of a cut but for its name in the tar, which depends on all cuts before it."""
    audio = {} if item.audio is None else {"audio": asdict(item.audio)}
    hosts = {} if item.hosts is None else {"hosts": item.hosts}
    return json.dumps({"cut": item.cut, **audio, **hosts})[1:]


def _planned(stored: dict[str, Any]) -> PlannedCut:
    audio = audio_place(stored["audio"]) if "audio" in stored else None
    hosts = tuple(stored["hosts"]) if "hosts" in stored else None
    return PlannedCut(stored["cut"], audio, hosts, member=stored["member"])
