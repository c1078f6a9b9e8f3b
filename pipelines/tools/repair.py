"""A damaged dataset made whole: broken and missing shards done again, the rest left as it is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.bulk.encoding import Encoding
from pipelines.bulk.finalize import describe_codec, description_checksum, finalize, wids
from pipelines.bulk.ownership import only_run
from pipelines.bulk.plan import Sharding, identify, make_plan, refuse_difference
from pipelines.bulk.reopen import is_sound, reopen, shards_with_failures
from pipelines.bulk.run import Job, do_shards, interrupted_by_sigterm, load_codec
from pipelines.dataset.token_dataset import read_description
from pipelines.format.layout import Layout
from pipelines.format.ledger import Receipt, read_receipts
from pipelines.sources.cuts import Selection
from pipelines.sources.manifests import find_inputs
from pipelines.storage.folders import Folder
from pipelines.storage.stable_bytes import json_bytes
from tokenizer.errors import InputError


@dataclass(frozen=True)
class Repaired:
    """What was done.

    Attributes:
        files: those restored that belong to no shard.
        shards: those done again.
        lost_cuts: cuts that were in a damaged shard and can be tokenized no more; `quarantine.jsonl` says why.
        is_original: every file has the bytes it was written with.
    """

    files: tuple[str, ...]
    shards: tuple[int, ...]
    lost_cuts: int
    is_original: bool


def repair(out: Path, codec: str | None = None, device: str | None = None, workers: int | None = None) -> Repaired:
    """Bring back every file of a dataset that is missing or not as it was written.

    Shards are made again from the audio, and so are the ledgers; `dataset.json` and its copy restore each other.

    Args:
        codec: where the codec is now; None: where it was.
        device: None: a device of the same type as before.
        workers: processes; None: one a CPU core, or one on another device.

    Raises:
        InputError: no dataset is there, both copies of `dataset.json` are damaged, or a shard has to be done again and
            its input, its codec or the device is another than before.
    """
    layout = Layout(out.absolute())
    if not layout.dataset.exists() and not layout.dataset_copy.exists():
        read_description(layout)  # says what is there instead
    with interrupted_by_sigterm(), only_run(layout):
        files, original = _restore_description(layout)
        description = json.loads(original)
        if _is_damaged(layout, description, layout.wids):
            receipts = [Receipt(**entry) for entry in description["shards"]]
            layout.write(layout.wids, wids(layout, receipts))
            files.append(layout.name(layout.wids))
        broken = {entry["shard"] for entry in description["shards"] if not is_sound(layout, entry)}
        ledger_is_damaged = _is_damaged(layout, description, layout.quarantine)
        if not broken and not ledger_is_damaged:
            return Repaired(tuple(files), (), 0, True)
        job = _job(out, description, codec, device, workers)
        loaded = load_codec(job)
        identity = description["made_from"]
        inputs = identity["input"]["paths"]
        for place in inputs:
            find_inputs(place)  # says what is gone
        now = identify(inputs, job.selection, job.sharding, job.encoding.to_dict(), describe_codec(loaded))
        refuse_difference(layout, identity, now)
        plan = make_plan(layout, identity)
        if ledger_is_damaged:  # what failed is tried again, to know why
            broken |= shards_with_failures(description, plan)
            files.append(layout.name(layout.quarantine))
        kept = reopen(layout, description, plan, broken)
        do_shards(job, layout, plan, loaded, kept)
        done = [receipt for receipt in read_receipts(layout, range(len(plan.shards))) if receipt is not None]
        repaired = finalize(layout, plan, describe_codec(loaded), done)
        lost = repaired["totals"]["quarantined"] - description["totals"]["quarantined"]
        return Repaired(tuple(files), tuple(sorted(broken)), max(lost, 0), layout.dataset.read_bytes() == original)


def _restore_description(layout: Layout) -> tuple[list[str], bytes]:
    """Let `dataset.json` and its copy restore each other. Returns the names of those restored, and their content."""
    both = (layout.dataset, layout.dataset_copy)
    candidates = [path.read_bytes() for path in both if _is_sound_description(path)]
    # The checksum is of the content. Of two that say the same, the right one is as it was written (\u00fc, not \u00FC).
    sound = next((data for data in candidates if data == json_bytes(json.loads(data))), next(iter(candidates), None))
    if sound is None:
        raise InputError(
            f"{layout.dataset} and its copy are both damaged or missing; restore one of them from a backup, or "
            "tokenize again into another OUT"
        )
    restored = [path for path in both if not path.exists() or path.read_bytes() != sound]
    for path in restored:
        layout.write(path, sound)
    return [layout.name(path) for path in restored], sound


def _is_sound_description(path: Folder) -> bool:
    try:
        description = json.loads(path.read_bytes())
        return description["checksum"] == description_checksum(description)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _is_damaged(layout: Layout, description: dict[str, Any], path: Folder) -> bool:
    recorded = description["files"][layout.name(path)]["sha256"]
    return not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != recorded


def _job(out: Path, description: dict[str, Any], codec: str | None, device: str | None, workers: int | None) -> Job:
    """The run that made the dataset, as far as it can be told from it."""
    made_from = description["made_from"]
    if "sharding" not in made_from or "encoding" not in made_from:
        raise InputError(
            f"{out} was not made from audio but of other datasets; make it again with the command that made it"
        )
    before = made_from["encoding"]
    return Job(
        source=", ".join(made_from["input"]["paths"]),
        out=out,
        codec=codec or description["codec"]["name"],
        sharding=Sharding(**made_from["sharding"]),
        encoding=Encoding(before["batch_seconds"], device or before["device_type"]),
        workers=workers,
        max_quarantine_rate=1.0,
        selection=Selection(**made_from.get("selection", {})),
    )
