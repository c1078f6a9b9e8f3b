"""The end of a run: `dataset.json`, the quarantine list and webdataset's shard list, from the plan and the receipts.

`reopen` is the reverse: it turns a finished dataset into an unfinished run, so that an ordinary run can redo some of
its shards. It writes the receipts of all other shards from `dataset.json` and then removes `dataset.json`. After that
the folder is in the same state as after a run that was killed.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipelines.bulk.stored_plan import Plan
from pipelines.format.description import CodecEntry, Description, ShardEntry, Totals, write_description
from pipelines.format.layout import Layout
from pipelines.format.ledger import Receipt, quarantine_lines, quarantined_by_shard, write_receipt
from pipelines.storage.stable_bytes import json_bytes, stored_file

RECORDED_PACKAGES = ("focalstream", "torch", "numpy", "soundfile", "soxr")


def count(plan: Plan, receipts: Sequence[Receipt]) -> Totals:
    """The totals of the shards that have these receipts; `planned` and `skipped` are of the whole plan."""
    seconds = round(math.fsum(receipt.seconds for receipt in receipts), 6)
    return Totals(
        skipped=plan.skipped,
        planned=plan.cuts,
        cuts=sum(receipt.cuts for receipt in receipts),
        quarantined=sum(len(receipt.quarantined) for receipt in receipts),
        duplicate_ids=plan.duplicate_ids,
        tokens=sum(receipt.tokens for receipt in receipts),
        seconds=seconds,
        hours=round(seconds / 3600, 6),
    )


def finalize(layout: Layout, plan: Plan, codec: CodecEntry, receipts: Sequence[Receipt]) -> Description:
    """Write `quarantine.jsonl`, webdataset's shard list, and last `dataset.json`. Returns its content.

    Every byte follows from the plan and the receipts (one per shard, in order), so it does not matter how often or
    where a run was continued.
    """
    assert [receipt.shard for receipt in receipts] == list(range(len(plan.shards)))
    shards = tuple(_entry(receipt) for receipt in receipts if receipt.files)
    totals = count(plan, receipts)
    if totals.planned != totals.cuts + totals.quarantined:
        raise RuntimeError(f"{layout.out}: the totals do not balance: {totals}")
    ledgers = {layout.quarantine: quarantine_lines(receipts), layout.wids: wids(layout, shards)}
    for path, data in ledgers.items():
        layout.write(path, data)
    return write_description(
        layout,
        Description(
            codec=codec,
            made_from=plan.identity,
            tools={name: importlib.metadata.version(name) for name in RECORDED_PACKAGES},
            totals=totals,
            files={layout.name(path): stored_file(data) for path, data in ledgers.items()},
            shards=shards,
        ),
    )


def wids(layout: Layout, shards: Iterable[ShardEntry]) -> bytes:
    """The shard list that webdataset's indexed reader opens; addresses are relative to this file."""
    listed = []
    for entry in shards:
        tar = Path("shards", layout.codes_tar(entry.shard).name).as_posix()
        listed.append({"url": f"../{tar}", "nsamples": entry.cuts, "filesize": entry.files[tar].bytes})
    return json_bytes({"wids_version": 1, "shardlist": listed})


def reopen(layout: Layout, description: Description, plan: Plan, redo: set[int]) -> dict[int, float]:
    """Turn a finished dataset into an unfinished run of the same plan, in which the shards `redo` are to be done.

    Returns:
        The shards of `redo` whose files are as `dataset.json` describes them, with the seconds of audio in each.
    """
    entries = {entry.shard: entry for entry in description.shards}
    # A damaged quarantine.jsonl is not read: then every shard with failures is in `redo`.
    failures = quarantined_by_shard(layout) if shards_with_failures(description, plan) - redo else {}
    for shard in set(range(len(plan.shards))) - redo:
        done = entries.get(shard) or ShardEntry(shard, {}, 0, 0, 0.0, 0)
        quarantined = tuple(failures.get(shard, ()))
        write_receipt(layout, Receipt(shard, done.files, done.cuts, done.tokens, done.seconds, quarantined))
    layout.dataset.unlink()
    return {shard: entries[shard].seconds for shard in redo if shard in entries and entries[shard].is_sound(layout)}


def shards_with_failures(description: Description, plan: Plan) -> set[int]:
    """Shards with a quarantined cut, among them those whose cuts all failed, which `dataset.json` does not list."""
    done = {entry.shard: entry.cuts for entry in description.shards}
    return {number for number, shard in enumerate(plan.shards) if done.get(number, 0) < shard.cuts}


def _entry(receipt: Receipt) -> ShardEntry:
    return ShardEntry(
        shard=receipt.shard,
        files=receipt.files,
        cuts=receipt.cuts,
        tokens=receipt.tokens,
        seconds=receipt.seconds,
        quarantined=len(receipt.quarantined),
    )
