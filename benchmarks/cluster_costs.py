"""What the single-process steps of a large run cost: measured on a small synthetic run, and multiplied.

    python benchmarks/cluster_costs.py [--cuts 20000] [--shards 2000]

Processor time and bytes per cut or shard come from this machine and this small scale; the last column is arithmetic
for 30 million cuts, 100,000 shards and 1,000 parts, not a measurement. No audio is read and no codec is loaded.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.bulk.finalize import finalize
from pipelines.bulk.plan import Sharding, identify, make_plan
from pipelines.bulk.stored_plan import Plan, PlannedShard, read_plan, write_plan
from pipelines.format.description import CodecEntry, read_description
from pipelines.format.layout import Layout
from pipelines.format.ledger import Receipt, read_receipts, write_receipt
from pipelines.sources.cuts import Selection
from pipelines.sources.manifests import content_digest, manifests_state
from pipelines.storage.folders import sizes_in
from pipelines.storage.stable_bytes import StoredFile

CUTS, SHARDS, PARTS = 30_000_000, 100_000, 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=20_000)
    parser.add_argument("--shards", type=int, default=2_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder, "cuts.jsonl")
        write_manifest(manifest, args.cuts)
        row("step", "measured", "unit", "at the large scale")
        size = manifest.stat().st_size
        row("manifest", f"{size / args.cuts:.0f} B", "cut", f"{size / args.cuts * CUTS / 1e9:.0f} GB")
        inputs = [str(manifest)]
        planned = timed(lambda: make_plan(Layout(Path(folder, "planned")), identity(inputs)))
        per_run("plan, once (tokenize --plan-only)", planned / args.cuts, "cut", CUTS)
        digest = timed(lambda: content_digest(inputs)) / args.cuts
        per_part("digest of the manifest, in each part (before)", digest, "cut", CUTS)
        per_part("size and time of the manifest, in each part (now)", timed(lambda: manifests_state(inputs)), "part", 1)

        layout = Layout(Path(folder, "out"))
        layout.out.mkdir()
        cuts_each = CUTS // SHARDS
        shards = tuple(PlannedShard(cuts_each, 3600.0) for _ in range(args.shards))
        (layout.work / "plan").mkdir(parents=True)
        write_plan(layout, Plan(identity(inputs), shards, 0))
        per_part("plan.json, read in each part", timed(lambda: read_plan(layout)) / args.shards, "shard", SHARDS)
        for number in range(args.shards):
            write_synthetic(layout, number, cuts_each)
        every = range(args.shards)
        receipts: list[Receipt | None] = []
        reading = timed(lambda: receipts.extend(read_receipts(layout, every))) / args.shards
        per_part("all receipts, in each part (before)", reading, "shard", SHARDS)
        per_part(
            "names of receipts, in each part (now)",
            timed(lambda: sizes_in(layout.receipts)) / args.shards,
            "shard",
            SHARDS,
        )
        per_run("all receipts, in the last part", reading, "shard", SHARDS)
        done = [receipt for receipt in receipts if receipt is not None]
        entry = CodecEntry("c", "f" * 64, 4096, 12, 50.0, 16000, 320, 1)
        per_run(
            "dataset.json, written",
            timed(lambda: finalize(layout, read_plan(layout), entry, done)) / args.shards,
            "shard",
            SHARDS,
        )
        per_run("dataset.json, read", timed(lambda: read_description(layout)) / args.shards, "shard", SHARDS)
        size = layout.dataset.stat().st_size / args.shards
        row(
            "dataset.json",
            f"{size:.0f} B",
            "shard",
            f"{size * SHARDS / 1e6:.0f} MB; of 10,000 shards {size / 100:.0f} MB",
        )


def identity(inputs: list[str]) -> dict[str, Any]:
    return identify(inputs, Selection(), Sharding(cuts=300), {}, "none")


def timed(work: Callable[[], object]) -> float:
    """Seconds of processor time."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def per_run(step: str, seconds: float, unit: str, units: int) -> None:
    row(step, f"{1e6 * seconds:.1f} us", unit, f"{text(seconds * units)} in one process")


def per_part(step: str, seconds: float, unit: str, units: int) -> None:
    row(
        step, f"{1e6 * seconds:.1f} us", unit, f"{text(seconds * units)} a part, {text(seconds * units * PARTS)} in all"
    )


def text(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds > 3600
        else f"{seconds:.1f} s"
        if seconds > 1
        else f"{1e3 * seconds:.1f} ms"
    )


def row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def write_synthetic(layout: Layout, number: int, cuts: int) -> None:
    """The receipt of a shard, with files that have the sizes it says and no content."""
    files = {}
    names = [layout.name(path) for path in layout.shard_files(number)[:4]]
    for name in names:
        path = Path(str(layout.out), name)
        path.parent.mkdir(exist_ok=True)
        path.touch()
        files[name] = StoredFile(0, "0" * 64)
    write_receipt(layout, Receipt(number, files, cuts, 180_000, 3600.0, ()))


def write_manifest(path: Path, cuts: int) -> None:
    rng = random.Random(0)
    with path.open("w") as file:
        for i in range(cuts):
            seconds = round(rng.uniform(2, 20), 3)
            source = {"type": "url", "channels": [0], "source": f"s3://corpus/audio/{i // 1000:05}/{i:09}.flac"}
            recording = {"id": f"{i:09}", "sources": [source], "sampling_rate": 16000, "channel_ids": [0]}
            recording |= {"num_samples": round(seconds * 16000), "duration": seconds}
            said = {"id": f"{i}-0", "recording_id": f"{i:09}", "start": 0.0, "duration": seconds, "channel": 0}
            said |= {"text": "some words that somebody says in here", "speaker": f"speaker {i % 997}", "language": "en"}
            cut = {"id": f"{i:09}-0", "start": 0.0, "duration": seconds, "channel": 0, "supervisions": [said]}
            file.write(json.dumps({**cut, "recording": recording, "type": "MonoCut"}) + "\n")


if __name__ == "__main__":
    main()
