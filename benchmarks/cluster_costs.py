"""What the single-process steps of a large run cost: measured on a small synthetic run, and multiplied.

    python benchmarks/cluster_costs.py [--cuts 20000] [--shards 2000] [--store-shards 1100] [--no-store]

Processor time, requests and bytes per cut or shard come from this machine and this small scale; the last column is
arithmetic for 30 million cuts, 100,000 shards and 1,000 parts, not a measurement. No audio is read and no codec is
loaded. The store is moto on this machine; a listing gives 1,000 names a request.
"""

from __future__ import annotations

import argparse
import json
import pickle
import random
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines.bulk.finalize import finalize
from pipelines.bulk.plan import Sharding, identify, make_plan
from pipelines.bulk.planned_lines import _lines
from pipelines.bulk.stored_plan import Plan, PlannedShard, read_plan, write_plan
from pipelines.format.description import CodecEntry, read_description
from pipelines.format.layout import Layout
from pipelines.format.ledger import Receipt, read_receipts, write_receipt
from pipelines.format.member_ids import RECENT, SeenIds
from pipelines.format.shards import make_shard, store_shard
from pipelines.sources.blocks import BLOCK_LINES
from pipelines.sources.cuts import PlannedCut, Selection
from pipelines.sources.manifests import content_digest, manifests_state, read_blocks
from pipelines.storage.folders import dataset_folder, remove_tree, sizes_in
from pipelines.storage.stable_bytes import StoredFile
from pipelines.tools.verify import verify
from tests.pipelines.storage.slow_s3 import counts, slow_s3

CODEC = CodecEntry("c", "f" * 64, 4096, 12, 50.0, 16000, 320, 1)
CUTS, SHARDS, PARTS = 30_000_000, 100_000, 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=20_000)
    parser.add_argument("--shards", type=int, default=2_000)
    parser.add_argument("--store-shards", type=int, default=1_100)
    parser.add_argument("--no-store", action="store_true", help="leave out the requests")
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
        block = next(read_blocks(inputs, apart=True))
        lines = [_lines(block, Selection()) for _ in range(3)][-1]
        others = timed(lambda: [_lines(block, Selection()) for _ in range(10)]) / 10 / len(lines.ids)
        sent = timed(lambda: [pickle.loads(pickle.dumps(what)) for what in (block, lines) * 10]) / 10 / len(lines.ids)
        waited_for = planned / args.cuts - others + sent
        per_run("of that, what --workers processes do side by side", others, "cut", CUTS)
        per_run("of that, what one process does, with sending (gzip in its threads)", waited_for, "cut", CUTS)
        per_run(
            "ids that were there before, among 30 million (in the former, at this scale)", of_seen_ids(), "cut", CUTS
        )
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
        per_run(
            "dataset.json, written",
            timed(lambda: finalize(layout, read_plan(layout), CODEC, done)) / args.shards,
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

        verified(Path(folder, "verified"))
    if not args.no_store:
        on_a_store(args.store_shards)


def of_seen_ids() -> float:
    """Seconds of processor time to look up an id when as many have been seen as there are cuts at the large scale."""
    seen, rng, left = SeenIds(), np.random.default_rng(0), CUTS
    while left > RECENT:
        size = RECENT << (left // RECENT).bit_length() - 1
        seen._runs.append(np.sort(rng.integers(1 << 63, size=size, dtype=np.uint64)))
        left -= size
    blocks = [[f"{i}-{j}" for j in range(BLOCK_LINES)] for i in range(10)]
    return timed(lambda: [seen.occurrences(ids) for ids in blocks]) / 10 / BLOCK_LINES


def verified(out: Path, shards: int = 4, cuts: int = 300) -> None:
    """Shards with tokens of 12 s a cut, verified."""
    layout, rng = Layout(out), np.random.default_rng(0)
    layout.out.mkdir()
    receipts = []
    for shard in range(shards):
        planned = [
            PlannedCut({"id": f"{shard}-{i}", "type": "MonoCut", "start": 0.0, "duration": 12.0, "channel": 0,
                        "supervisions": [], "recording": recording(f"{shard}-{i}", 12.0)}, member=f"{shard}-{i}")
            for i in range(cuts)
        ]  # fmt: skip
        codes = [rng.integers(4096, size=600).astype(np.uint16) for _ in planned]
        receipts.append(store_shard(layout, make_shard(layout, shard, planned, codes, 50.0)))
    plan = Plan(identity([str(Path(__file__))]), tuple(PlannedShard(cuts, 3600.0) for _ in range(shards)), 0)
    finalize(layout, plan, CODEC, receipts)
    remove_tree(layout.work)
    verify(layout.out)  # imports the readers
    seconds = timed(lambda: verify(layout.out)) / shards
    per_run("verify, with the readers that are installed", seconds, "shard", SHARDS)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / shards
    row("bytes that verify fetches", f"{size / 1e6:.2f} MB", "shard", f"{size * SHARDS / 1e9:.0f} GB")


def on_a_store(shards: int) -> None:
    """Requests of the steps that each part or one process takes."""
    with slow_s3(0.0) as address, tempfile.TemporaryDirectory() as folder:
        layout, inputs = Layout(dataset_folder("s3://speech/out")), ["s3://speech/cuts.jsonl"]
        write_manifest(Path(folder, "cuts.jsonl"), 1000)
        fsspec.filesystem("s3").put_file(str(Path(folder, "cuts.jsonl")), "speech/cuts.jsonl")
        plan = Plan(identity(inputs), tuple(PlannedShard(300, 3600.0) for _ in range(shards)), 0)
        write_plan(layout, plan)
        ours = range(0, shards, max(1, shards // 100))  # of a part of 1,000
        steps: list[tuple[str, str, int, Callable[[], object]]] = [
            ("start of a part: is the manifest the same", "part", 1, lambda: manifests_state(inputs)),
            ("start of a part: plan.json", "part", 1, lambda: read_plan(layout)),
            ("start of a part: which shards are done, none is", "part", 1, lambda: read_receipts(layout, ours)),
        ]
        for step in steps:
            counted(address, *step)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda number: write_synthetic_to(layout, number), range(shards)))
        done: list[Receipt | None] = []
        for step in (
            ("start of a part again: 100 shards of its own, all done", "part", 1, lambda: read_receipts(layout, ours)),
            ("end of a part: names of receipts", "1,000 shards", SHARDS // 1000, lambda: sizes_in(layout.receipts)),
            (
                "all receipts, in the last part",
                "shard",
                SHARDS,
                lambda: done.extend(read_receipts(layout, range(shards))),
            ),
            (
                "dataset.json and the rest, in the last part",
                "part",
                1,
                lambda: finalize(layout, plan, CODEC, whole(done)),
            ),
        ):
            counted(address, *step, units=shards if step[1] == "shard" else shards / 1000 if "1,000" in step[1] else 1)


def whole(receipts: list[Receipt | None]) -> list[Receipt]:
    return [receipt for receipt in receipts if receipt is not None]


def counted(address: str, name: str, unit: str, at_scale: int, work: Callable[[], object], units: float = 1) -> None:
    before = counts(address)
    work()
    asked = counts(address) - before
    requests = sum(count for method, count in asked.items() if method != "bytes") / units
    size = asked["bytes"] / units
    row(
        f"on a store: {name}",
        f"{requests:.2f} requests, {size / 1e3:.1f} KB",
        unit,
        f"{requests * at_scale:,.0f} requests, {size * at_scale / 1e6:,.1f} MB",
    )


def write_synthetic_to(layout: Layout, number: int) -> None:
    files = {}
    for path in layout.shard_files(number)[:4]:
        path.write_bytes(b"")
        files[layout.name(path)] = StoredFile(0, "0" * 64)
    write_receipt(layout, Receipt(number, files, 300, 180_000, 3600.0, ()))


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


def recording(name: str, seconds: float) -> dict[str, Any]:
    source = {"type": "url", "channels": [0], "source": f"s3://corpus/audio/{name[:6]}/{name}.flac"}
    found = {"id": name, "sources": [source], "sampling_rate": 16000, "channel_ids": [0]}
    return found | {"num_samples": round(seconds * 16000), "duration": seconds}


def write_manifest(path: Path, cuts: int) -> None:
    rng = random.Random(0)
    with path.open("w") as file:
        for i in range(cuts):
            seconds = round(rng.uniform(2, 20), 3)
            said = {"id": f"{i}-0", "recording_id": f"{i:09}", "start": 0.0, "duration": seconds, "channel": 0}
            said |= {"text": "some words that somebody says in here", "speaker": f"speaker {i % 997}", "language": "en"}
            cut = {"id": f"{i:09}-0", "start": 0.0, "duration": seconds, "channel": 0, "supervisions": [said]}
            file.write(json.dumps({**cut, "recording": recording(f"{i:09}", seconds), "type": "MonoCut"}) + "\n")


if __name__ == "__main__":
    main()
