"""Opening and reading a corpus of many shards: seconds, memory and milliseconds a batch, of one process or several.

    OMP_NUM_THREADS=1 python benchmarks/loader_scale.py --folder SCRATCH [--shards 100000] [--cuts 300] [--processes 8]

Writes one real shard of random codes and links it as often as there are to be shards, so 30 million cuts take little
disk (and all of it is in the page cache). Each process opens the dataset, makes the batches of 64 x 2,048 tokens that
its rank has, and crosses into the second epoch; with several processes all run at the same time, as the ranks of one
machine do. Beside seconds by the clock stand those of processor time ("cpu"). Memory is by share (Pss: a page that n
processes have counts 1/n in each) and that of the process alone (dirty private pages), at the end. Run
twice: the first time an index may be made and kept (XDG_CACHE_HOME, in SCRATCH here).
`PYTHONPATH=OTHER_CHECKOUT` measures another version.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROWS, ROW_TOKENS = 64, 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="scratch: the links and the kept index")
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--cuts", type=int, default=300, help="of a shard")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--rank", type=int, help="used by the script itself")
    args = parser.parse_args()
    tokens = args.folder / f"tokens-{args.shards}-{args.cuts}"
    if args.rank is not None:
        print(json.dumps(measure(tokens, args.rank, args.processes, args.batches)))
        return
    if not (tokens / "dataset.json").exists():
        write_links(tokens, args.shards, args.cuts)
    command = [sys.executable, *sys.argv, "--rank"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(args.folder / "cache")}
    running = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True, env=environment)
        for rank in range(args.processes)
    ]
    found = [json.loads(process.communicate()[0]) for process in running]
    print(f"{args.shards:,} shards of {args.cuts} cuts, {args.processes} processes: largest of them, mean")
    for name in found[0]:
        values = [figures[name] for figures in found]
        print(f"  {name:<34} {max(values):10.2f} {float(np.mean(values)):10.2f}")


def measure(tokens: Path, rank: int, processes: int, batches: int) -> dict[str, float]:
    """Figures of one process: seconds by the clock, and of processor time (" cpu")."""
    from pipelines.dataset.batches import Framing, PackedBatches
    from pipelines.dataset.token_dataset import TokenDataset

    found: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began, busy = time.perf_counter(), time.process_time()
        result = work()
        found[name] = time.perf_counter() - began
        found[f"{name} cpu"] = time.process_time() - busy
        return result

    dataset = timed("opening, s", lambda: TokenDataset(tokens))
    framing = Framing(1, 2, 16)
    loader = timed("loader, s", lambda: PackedBatches(dataset, framing, ROWS, ROW_TOKENS, 0, None, rank, processes))
    timed("first batch, s", lambda: loader.batch(0))
    times = []
    for step in range(1, batches + 1):
        start = time.perf_counter(), time.process_time()
        loader.batch(step * 37)
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    found["batch, median ms"], found["batch, median ms cpu"] = (1e3 * np.median(times, axis=0)).tolist()
    timed("crossing epochs, s", lambda: loader.batch(loader.tokens_per_epoch // (ROWS * ROW_TOKENS)))
    timed("batch after that, s", lambda: loader.batch(loader.tokens_per_epoch // (ROWS * ROW_TOKENS) + 1))
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    sizes = {
        name: int(line.split()[1]) / 1e6
        for line in lines
        for name in ("Pss", "Private_Dirty")
        if line.startswith(f"{name}:")
    }
    found["memory by share (Pss), GB"] = sizes["Pss"]
    found["memory of its own, GB"] = sizes["Private_Dirty"]
    return found


def write_links(tokens: Path, shards: int, cuts: int) -> None:
    """One real shard, and links to its files."""
    from benchmarks.loader import write_dataset

    real = tokens.parent / f"one-{cuts}"
    if not (real / "tokens" / "dataset.json").exists():
        lengths = np.random.default_rng(0).lognormal(np.log(175), 0.5, cuts).astype(np.int64) + 1
        write_dataset(real / "tokens", lengths)
    description = json.loads((real / "tokens" / "dataset.json").read_text())
    (entry,) = description["shards"]
    source = real / "tokens"
    for part in ("shards", "index"):
        (tokens / part).mkdir(parents=True, exist_ok=True)
    named = {name: stored for name, stored in entry["files"].items() if not name.startswith("packed/")}
    linked = [name for name in named if name.endswith(("000.npy", "000.tar"))]  # what a loader reads
    originals: dict[str, Path] = {}
    entries = []
    for number in range(shards):
        for name in linked:
            mine = name.replace("000000", f"{number:06d}")
            if number % 50_000 == 0:  # a file system may allow 65,000 links to a file
                (tokens / mine).write_bytes((source / name).read_bytes())
                originals[name] = tokens / mine
            else:
                os.link(originals[name], tokens / mine)
        files = {name.replace("000000", f"{number:06d}"): stored for name, stored in named.items()}
        entries.append({**entry, "shard": number, "files": files})
    (tokens / "dataset.json").write_text(json.dumps({**description, "shards": entries}))


if __name__ == "__main__":
    main()
