"""Repairs a damaged dataset: broken and missing shards are done again, the rest stays as it is."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.bulk.encoding import Encoding
from pipelines.bulk.executors.local import Local
from pipelines.bulk.finalize import finalize, reopen, shards_with_failures, wids
from pipelines.bulk.interruption import interrupted_by_sigterm
from pipelines.bulk.ownership import only_run
from pipelines.bulk.plan import Sharding, identify, make_plan, refuse_difference
from pipelines.bulk.run import Job, do_shards, load_codec
from pipelines.format.description import CodecEntry, Description, read_description, restore_description
from pipelines.format.layout import Layout
from pipelines.format.ledger import read_receipts
from pipelines.sources.cuts import Selection
from pipelines.sources.manifests import find_inputs
from pipelines.storage.folders import Folder
from tokenizer.errors import InputError


@dataclass(frozen=True)
class Repaired:
    """What was done.

    Attributes:
        files: those restored that belong to no shard.
        shards: those done again.
        lost_cuts: cuts of a damaged shard that can no longer be tokenized; `quarantine.jsonl` says why.
        is_original: every file has the bytes it was written with.
    """

    files: tuple[str, ...]
    shards: tuple[int, ...]
    lost_cuts: int
    is_original: bool


def repair(out: Folder, codec: str | None = None, device: str | None = None, workers: int | None = None) -> Repaired:
    """Restore every file of a dataset that is missing or not as it was written.

    Shards are made again from the audio, and so is `quarantine.jsonl`; `dataset.json` and its copy restore each other.

    Args:
        codec: where the codec is now; None: where it was.
        device: None: a device of the same type as before.
        workers: processes; None: one per CPU core, or one on another device.

    Raises:
        InputError: no dataset is there, both copies of `dataset.json` are damaged, or a shard has to be done again and
            its input, its codec or the device has changed.
    """
    layout = Layout(out.absolute())
    if not layout.dataset.exists() and not layout.dataset_copy.exists():
        read_description(layout)  # raises, and says what is there instead
    with interrupted_by_sigterm(), only_run(layout) as still_held:
        files = restore_description(layout)
        original, description = layout.dataset.read_bytes(), read_description(layout)
        if _is_damaged(layout, description, layout.wids):
            layout.write(layout.wids, wids(layout, description.shards))
            files.append(layout.name(layout.wids))
        broken = {entry.shard for entry in description.shards if not entry.is_sound(layout)}
        ledger_is_damaged = _is_damaged(layout, description, layout.quarantine)
        if not broken and not ledger_is_damaged:
            return Repaired(tuple(files), (), 0, True)
        job = _job(out, description, codec, device, workers)
        loaded = load_codec(job)
        identity = description.made_from
        inputs = identity["input"]["paths"]
        for place in inputs:
            find_inputs(place)  # raises where an input is missing
        now = identify(inputs, job.selection, job.sharding, job.encoding.to_dict(), loaded.fingerprint)
        refuse_difference(layout, identity, now)
        plan = make_plan(layout, identity, still_held)
        if ledger_is_damaged:  # cuts that failed are tried again, to find the reasons
            broken |= shards_with_failures(description, plan)
            files.append(layout.name(layout.quarantine))
        kept = reopen(layout, description, plan, broken)
        do_shards(job, layout, plan, loaded, kept, still_held)
        done = [receipt for receipt in read_receipts(layout, range(len(plan.shards))) if receipt is not None]
        repaired = finalize(layout, plan, CodecEntry.of(loaded), done)
        lost = repaired.totals.quarantined - description.totals.quarantined
        return Repaired(tuple(files), tuple(sorted(broken)), max(lost, 0), layout.dataset.read_bytes() == original)


def _is_damaged(layout: Layout, description: Description, path: Folder) -> bool:
    return not description.files[layout.name(path)].matches(path)


def _job(out: Folder, description: Description, codec: str | None, device: str | None, workers: int | None) -> Job:
    """The run that made the dataset, as far as `dataset.json` says."""
    made_from = description.made_from
    if "sharding" not in made_from or "encoding" not in made_from:
        raise InputError(
            f"{out} was made from other datasets, not from audio; make it again with the command that made it"
        )
    before = made_from["encoding"]
    return Job(
        source=", ".join(made_from["input"]["paths"]),
        out=out,
        codec=codec or description.codec.name,
        sharding=Sharding(**made_from["sharding"]),
        encoding=Encoding.from_dict(before, device or before["device_type"]),
        executor=Local(workers, inline_if_one=True),
        max_quarantine_rate=1.0,
        selection=Selection(**made_from.get("selection", {})),
    )
