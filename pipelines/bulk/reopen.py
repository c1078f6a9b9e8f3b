"""A finished dataset made unfinished again, so that an ordinary run does some of its shards anew.

The receipts are written back from `dataset.json`, all but those of the shards to be redone; then `dataset.json` goes.
From there on the folder is that of a run that was killed, and is as safe.
"""

from __future__ import annotations

import json
from typing import Any

from pipelines.bulk.plan import Plan
from pipelines.format.layout import Layout
from pipelines.format.ledger import Quarantined, Receipt, write_receipt
from pipelines.storage.stable_bytes import sha256_file
from tokenizer.errors import InputError


def reopen(layout: Layout, description: dict[str, Any], plan: Plan, redo: set[int]) -> dict[int, float]:
    """Turn a finished dataset into an unfinished run of the same plan, in which the shards `redo` are to be done.

    Returns:
        Those of them whose files are as `dataset.json` describes them, with the seconds of audio that they hold.
    """
    entries = {entry["shard"]: entry for entry in description["shards"]}
    # A damaged ledger is not read: all its shards are then to be done.
    failures = quarantined_by_shard(layout) if shards_with_failures(description, plan) - redo else {}
    for shard in set(range(len(plan.shards))) - redo:
        nothing = {"files": {}, "cuts": 0, "tokens": 0, "seconds": 0.0}
        known = {**nothing, **entries.get(shard, {}), "shard": shard, "quarantined": tuple(failures.get(shard, ()))}
        write_receipt(layout, Receipt(**known))
    layout.dataset.unlink()
    return {shard: entries[shard]["seconds"] for shard in redo if shard in entries and is_sound(layout, entries[shard])}


def shards_with_failures(description: dict[str, Any], plan: Plan) -> set[int]:
    """Shards of which a cut is quarantined; those of which all are have no entry in `dataset.json`."""
    done = {entry["shard"]: entry["cuts"] for entry in description["shards"]}
    return {number for number, shard in enumerate(plan.shards) if done.get(number, 0) < shard.cuts}


def is_sound(layout: Layout, entry: dict[str, Any]) -> bool:
    """Whether every file of a shard is as its entry in `dataset.json` says."""
    return all(
        (layout.out / name).is_file() and sha256_file(layout.out / name) == recorded["sha256"]
        for name, recorded in entry["files"].items()
    )


def quarantined_by_shard(layout: Layout) -> dict[int, list[Quarantined]]:
    """The lines of `quarantine.jsonl`. Raises InputError where they do not say their shard."""
    found: dict[int, list[Quarantined]] = {}
    for line in layout.quarantine.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if "shard" not in entry:
            raise InputError(
                f"{layout.quarantine} does not say in which shard a cut was, as in version 0.1.0; tokenize again into "
                "another OUT"
            )
        found.setdefault(entry.pop("shard"), []).append(Quarantined(**entry))
    return found
