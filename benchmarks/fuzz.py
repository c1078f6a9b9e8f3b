"""Broken and hostile input to every reader: seeded mutations of sound files, and what becomes of each.

    python benchmarks/fuzz.py --cases 10000 --seed 1                 # all readers; outcomes, then the findings
    python benchmarks/fuzz.py --reader audio --first 417 --cases 1   # one case again

A reader may succeed or refuse in one line (InputError, OSError, or what it documents). Anything else is a finding:
another exception, a dead process, more than 10 s for a case, or more than 1 GB of memory over what the process began
with. Cases run in worker processes, one reader each, so that a hang or a crash is seen from outside.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_readers import READERS, make_seeds

HANG_SECONDS = 10.0
MEMORY_BYTES = 1 << 30
SHARES = {  # of the cases
    "audio": 0.40,
    "manifest": 0.12,
    "shar": 0.08,
    "config": 0.06,
    "weights": 0.06,
    "dataset": 0.08,
    "packed": 0.06,
    "npy": 0.06,
    "messages": 0.08,
}


def outcome_of(reader: str, case: int, seed: int, seeds: dict[str, Any]) -> tuple[str, str]:
    """("read" | "refused" | "finding", what was found) of one case, in this process."""
    from slm.serve.protocol import Refused
    from tokenizer.errors import InputError

    rng = np.random.default_rng([seed, sorted(READERS).index(reader), case])
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        try:
            READERS[reader](rng, Path(folder), seeds)
            return "read", ""
        except (InputError, OSError, Refused) as error:
            if "\n" in str(error).strip():
                return "finding", f"more than one line: {error!r}"
            return "refused", ""
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            return "finding", f"{type(error).__name__}: {str(error)[:100]} ({Path(where.filename).name}:{where.lineno})"


def _worker(pipe: Connection, reader: str, cases: list[int], seed: int, seeds: dict[str, Any]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what decoders print
    import tokenizer.audio  # noqa: F401 - imports are not a case's time

    # the first case of a reader imports what it needs; the memory that counts comes after
    outcome_of(reader, cases[0], seed, seeds)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for case in cases:
        pipe.send(("begun", case, ""))
        kind, found = outcome_of(reader, case, seed, seeds)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        if grown > MEMORY_BYTES:
            kind, found = "finding", f"{grown / 1e9:.1f} GB of memory"
            before += grown
        pipe.send((kind, case, found))
    pipe.send(("done", -1, ""))


def run_reader(reader: str, cases: list[int], seed: int, seeds: dict[str, Any]) -> tuple[Counter[str], list[str]]:
    """Outcomes of the cases, and a line for each finding."""
    counts, findings, left = Counter[str](), [], list(cases)
    context = multiprocessing.get_context("fork")
    while left:
        ours, theirs = context.Pipe()
        process = context.Process(target=_worker, args=(theirs, reader, left, seed, seeds))
        process.start()
        theirs.close()
        current, limit = left[0], 60.0  # the first message waits for imports
        while True:
            try:
                kind, case, found = (
                    ours.recv() if ours.poll(limit) else ("hang", current, f"more than {HANG_SECONDS:g} s")
                )
            except EOFError:
                kind, case, found = "dead", current, "the process died"
            if kind == "done":
                left = []
                break
            if kind == "begun":
                current, limit = case, HANG_SECONDS
                continue
            left = left[left.index(case) + 1 :]
            counts["finding" if kind in ("hang", "dead") else kind] += 1
            if found:
                findings.append(f"{reader} {case}: {found}")
            if kind in ("hang", "dead"):
                process.kill()
                break
        process.join()
    return counts, findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reader", choices=sorted(READERS))
    parser.add_argument("--codec", type=Path, default=Path(__file__).resolve().parents[1] / "tokenizer/weights/small")
    args = parser.parse_args()
    began, all_findings, total = time.perf_counter(), [], Counter[str]()
    with tempfile.TemporaryDirectory(prefix="fuzz-seeds-") as folder:
        seeds = make_seeds(Path(folder), args.codec)
        for reader in [args.reader] if args.reader else list(READERS):
            number = args.cases if args.reader else round(args.cases * SHARES[reader])
            counts, findings = run_reader(reader, list(range(args.first, args.first + number)), args.seed, seeds)
            outcomes = f"{counts['read']:6,} read, {counts['refused']:6,} refused, {len(findings)} findings"
            print(f"{reader:10} {number:6,} cases: {outcomes}", flush=True)
            all_findings += findings
            total += counts
    print("\n".join(all_findings))
    print(
        f"{total.total():,} cases, seed {args.seed}, {len(all_findings)} findings, {time.perf_counter() - began:.0f} s"
    )
    return 1 if all_findings else 0


if __name__ == "__main__":
    sys.exit(main())
