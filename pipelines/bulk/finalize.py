"""The end of a run: `dataset.json` and what lies beside it, derived from the plan and the receipts alone."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.bulk.plan import Plan
from pipelines.format.layout import FORMAT, FORMAT_VERSION, Layout
from pipelines.format.ledger import Receipt
from pipelines.storage.stable_bytes import json_bytes, json_lines

if TYPE_CHECKING:
    from tokenizer import Codec

RECORDED_PACKAGES = ("focalstream", "torch", "numpy", "soundfile", "soxr")


def describe_codec(codec: Codec) -> dict[str, Any]:
    """What a reader of the tokens needs to know of the codec."""
    return {
        "name": codec.name,
        "fingerprint": codec.fingerprint,
        "codebook_size": codec.codebook_size,
        "bits_per_token": codec.bits_per_token,
        "token_rate": codec.token_rate,
        "sample_rate": codec.sample_rate_in,
        "hop_samples": codec.hop_samples,
        "first_samples": codec.first_samples,
    }


def count(plan: Plan, receipts: Sequence[Receipt]) -> dict[str, Any]:
    """The totals of the shards that have these receipts; `planned` and `skipped` are of the whole plan."""
    seconds = round(math.fsum(receipt.seconds for receipt in receipts), 6)
    return {
        "skipped": plan.skipped,
        "planned": plan.cuts,
        "cuts": sum(receipt.cuts for receipt in receipts),
        "quarantined": sum(len(receipt.quarantined) for receipt in receipts),
        "duplicate_ids": plan.duplicate_ids,
        "tokens": sum(receipt.tokens for receipt in receipts),
        "seconds": seconds,
        "hours": round(seconds / 3600, 6),
    }


def finalize(layout: Layout, plan: Plan, codec: dict[str, Any], receipts: Sequence[Receipt]) -> dict[str, Any]:
    """Write the ledgers, the copy of `dataset.json` and, last, itself. Returns its content.

    Every byte follows from the plan and the receipts (one a shard, in order), so it does not matter how often or by
    whom a run was continued.
    """
    assert [receipt.shard for receipt in receipts] == list(range(len(plan.shards)))
    with_files = [receipt for receipt in receipts if receipt.files]
    quarantined = [{"shard": receipt.shard, **asdict(entry)} for receipt in receipts for entry in receipt.quarantined]
    totals = count(plan, receipts)
    if totals["planned"] != totals["cuts"] + totals["quarantined"]:
        raise RuntimeError(f"{layout.out}: the totals do not balance: {totals}")
    ledgers = {layout.quarantine: json_lines(quarantined), layout.wids: wids(layout, with_files)}
    for path, data in ledgers.items():
        layout.write(path, data)
    description = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "has_copy": True,
        "codec": codec,
        "made_from": plan.identity,
        "tools": {name: importlib.metadata.version(name) for name in RECORDED_PACKAGES},
        "totals": totals,
        "files": {
            layout.name(path): {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for path, data in ledgers.items()
        },
        "shards": [_shard_entry(receipt) for receipt in with_files],
    }
    description["checksum"] = description_checksum(description)
    for path in (layout.dataset_copy, layout.dataset):
        layout.write(path, json_bytes(description))
    return description


def description_checksum(description: dict[str, Any]) -> str:
    """sha256 over everything in `dataset.json` but this checksum itself."""
    rest = {name: value for name, value in description.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode("ascii")).hexdigest()


def _shard_entry(receipt: Receipt) -> dict[str, Any]:
    entry = asdict(receipt)
    return {**entry, "quarantined": len(receipt.quarantined)}


def wids(layout: Layout, receipts: list[Receipt]) -> bytes:
    """The shard list that webdataset's indexed reader opens; addresses are relative to this file."""
    shards = []
    for receipt in receipts:
        tar = Path("shards", layout.codes_tar(receipt.shard).name).as_posix()
        shards.append({"url": f"../{tar}", "nsamples": receipt.cuts, "filesize": receipt.files[tar]["bytes"]})
    return json_bytes({"wids_version": 1, "shardlist": shards})
