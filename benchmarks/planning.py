"""Memory of planning a manifest of millions of lines: `python benchmarks/planning.py [--lines 1000000]`.

The manifest is synthetic (its audio does not exist) and is written to a temporary folder. Prints the resident memory of
the process after each tenth of the lines, for the stored plan of `tokenize` and for the estimate of `focalstream plan`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipelines.bulk import plan
from pipelines.bulk.estimate import estimate
from pipelines.format.layout import Layout
from pipelines.sources.access import Access
from pipelines.sources.cuts import Selection, SourceCut
from pipelines.sources.manifests import read_cuts

CODEC = SimpleNamespace(
    sample_rate_in=16000, token_rate=50.0, bits_per_token=12, token_count=lambda samples: -(-samples // 320)
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder, "cuts.jsonl.gz")
        write_manifest(manifest, args.lines)
        print(f"manifest of {args.lines:,} lines: {manifest.stat().st_size / 1e6:.0f} MB compressed")
        inputs, sharding = [str(manifest)], plan.Sharding(hours=10.0)
        begun = time.monotonic()
        found = watched(args.lines, lambda: estimate(inputs, Selection(), sharding, CODEC))  # type: ignore[arg-type]
        print(f"focalstream plan: {found.shards} shards, {time.monotonic() - begun:.0f} s")
        begun = time.monotonic()
        identity = plan.identify(inputs, Selection(), sharding, {}, "none")
        out = Path(folder, "out")
        out.mkdir()
        stored = watched(args.lines, lambda: plan.make_plan(Layout(out), identity))
        print(f"tokenize's stored plan: {len(stored.shards)} shards, {time.monotonic() - begun:.0f} s")


def watched(lines: int, work: Callable[[], Any]) -> Any:
    """Do the work, and print the memory at every tenth of the manifest."""

    def counting(inputs: list[str], *access: Access) -> Iterator[SourceCut]:
        for number, item in enumerate(read_cuts(inputs, *access), 1):
            yield item
            if number % (lines // 10) == 0:
                print(f"  {number:>10,} lines: {resident_mb():.1f} MB")

    plan.read_cuts, before = counting, plan.read_cuts
    try:
        return work()
    finally:
        plan.read_cuts = before


def write_manifest(path: Path, lines: int) -> None:
    rng = random.Random(0)
    with gzip.open(path, "wt", compresslevel=1) as file:
        for i in range(lines):
            seconds, cut_id = round(rng.uniform(1, 20), 2), f"{i // 997}-{i % 997}-{i:07d}"
            recording = {
                "id": cut_id,
                "sources": [{"type": "file", "channels": [0], "source": f"/corpus/{i // 997}/{cut_id}.flac"}],
                "sampling_rate": 16000,
                "num_samples": round(seconds * 16000),
                "duration": seconds,
                "channel_ids": [0],
            }
            supervision = {
                "id": cut_id,
                "recording_id": cut_id,
                "start": 0.0,
                "duration": seconds,
                "channel": 0,
                "text": " ".join(rng.choices(("some", "words", "of", "a", "sentence"), k=20)),
                "speaker": f"speaker {i // 997}",
            }
            cut = {
                "id": cut_id,
                "start": 0.0,
                "duration": seconds,
                "channel": 0,
                "supervisions": [supervision],
                "recording": recording,
                "type": "MonoCut",
            }
            file.write(json.dumps(cut) + "\n")


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


if __name__ == "__main__":
    main()
