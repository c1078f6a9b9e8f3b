"""`focalstream tokenize`: a manifest or a directory of audio to token shards."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pipelines.encoding import Encoding
from pipelines.plan import Sharding
from pipelines.tokenize import Job, Result, tokenize


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="MANIFEST_OR_DIR",
        help="Lhotse cuts or recordings (.jsonl, .jsonl.gz), a Shar folder, a folder of audio files (searched "
        "recursively; hidden files are left out), an audio file, or a quoted glob of these",
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        help="folder of the dataset. The same command again continues a run that was interrupted",
    )
    parser.add_argument("--codec", default="small", help="shipped name, directory, or Hugging Face Hub id")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--shard-cuts", type=int, metavar="N", help="cuts in a shard, instead of hours")
    size.add_argument("--shard-hours", type=float, default=1.0, metavar="H", help="hours of audio in a shard")
    parser.add_argument(
        "--engine",
        choices=("inline", "local"),
        help="in this process, or by worker processes of this machine; when not given, local where there are "
        "several workers and shards",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="worker processes; when not given, one a CPU core, or one with another --device",
    )
    parser.add_argument("--device", default="cpu", help='where the codec runs: "cpu", "cuda", "cuda:1"')
    parser.add_argument(
        "--batch-seconds",
        type=float,
        default=Encoding.batch_seconds,
        metavar="S",
        help="seconds of audio encoded at once, padding included; bounds memory. A GPU wants many times as much",
    )
    parser.add_argument(
        "--max-quarantine-rate",
        type=float,
        default=Job.max_quarantine_rate,
        metavar="R",
        help="stop when more than this share of all cuts cannot be tokenized, from 0 to 1",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    sharding = Sharding(cuts=args.shard_cuts) if args.shard_cuts is not None else Sharding(hours=args.shard_hours)
    result = tokenize(
        Job(
            source=args.source,
            out=args.out,
            codec=args.codec,
            sharding=sharding,
            encoding=Encoding(batch_seconds=args.batch_seconds, device=args.device),
            workers=args.workers,
            engine=args.engine,
            max_quarantine_rate=args.max_quarantine_rate,
        )
    )
    if args.json:
        json.dump(
            {
                "out": str(result.out),
                "was_complete": result.was_complete,
                **result.totals,
                "elapsed_seconds": round(result.elapsed, 3),
                "times_real_time": round(result.times_real_time, 2),
            },
            sys.stdout,
        )
        print()
    else:
        print(_sentence(result))
    return 0


def _sentence(result: Result) -> str:
    totals = result.totals
    done = f"{totals['cuts']:,} cuts, {totals['hours']:.2f} h, {totals['tokens']:,} tokens"
    if result.was_complete:
        return f"{result.out}: already complete ({done}); nothing to do"
    failed = f"; {totals['quarantined']} cuts failed, see quarantine.jsonl" if totals["quarantined"] else ""
    return f"{result.out}: {done} in {result.elapsed:.0f} s ({result.times_real_time:.0f}x real time){failed}"
