"""Memory and processor time of planning a manifest of millions of lines.

    python benchmarks/planning.py [--lines 1000000] [--processes 1,4] [--plan-only]

The manifest is synthetic (its audio does not exist) and is written to a temporary folder. Prints the resident memory of
the process after each tenth of the lines, for the stored plan of `tokenize` and for the estimate of `focalstream plan`.
With several processes, "here" is the time of the one that the others wait for.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipelines.bulk import plan, planned_lines
from pipelines.bulk.estimate import estimate
from pipelines.format.layout import Layout
from pipelines.sources.cuts import Selection, SourceCut

CODEC = SimpleNamespace(
    sample_rate_in=16000, token_rate=50.0, bits_per_token=12, token_count=lambda samples: -(-samples // 320)
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--processes", default="1", help="that read, of which each number is tried")
    parser.add_argument("--plan-only", action="store_true", help="no estimate")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder, "cuts.jsonl.gz")
        write_manifest(manifest, args.lines)
        print(f"manifest of {args.lines:,} lines: {manifest.stat().st_size / 1e6:.0f} MB compressed")
        inputs, sharding = [str(manifest)], plan.Sharding(hours=10.0)
        if not args.plan_only:
            with timed("focalstream plan"):
                watched(args.lines, lambda: estimate(inputs, Selection(), sharding, CODEC))  # type: ignore[arg-type]
        with timed("digest of the manifest"):
            identity = plan.identify(inputs, Selection(), sharding, {}, "none")
        for processes in map(int, args.processes.split(",")):
            layout = Layout(Path(folder, f"out{processes}"))
            layout.out.mkdir()
            with timed(f"tokenize's stored plan, {processes} process(es)"):
                watched(args.lines, partial(plan.make_plan, layout, identity, processes=processes))


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Print the processor time that something takes."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    before, begun = [resource.getrusage(who) for who in whose], time.monotonic()
    yield
    here, others = (
        now.ru_utime + now.ru_stime - then.ru_utime - then.ru_stime
        for now, then in zip(map(resource.getrusage, whose), before, strict=True)
    )
    text = f"{time.monotonic() - begun:.0f} s, processor time {here:.1f} s here, {others:.1f} s in other processes"
    print(f"{what}: {text}, {resident_mb():.0f} MB", flush=True)


def watched(lines: int, work: Callable[[], Any]) -> Any:
    """Do the work, and print the memory at every tenth of the manifest that this process reads itself."""
    before, number = planned_lines.SelectedCuts.__next__, 0

    def counting(source: planned_lines.SelectedCuts) -> SourceCut:
        nonlocal number
        number += 1
        if number % (lines // 10) == 0:
            print(f"  {number:>10,} lines: {resident_mb():.1f} MB", flush=True)
        return before(source)

    planned_lines.SelectedCuts.__next__ = counting  # type: ignore[method-assign]
    try:
        return work()
    finally:
        planned_lines.SelectedCuts.__next__ = before  # type: ignore[method-assign]


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
