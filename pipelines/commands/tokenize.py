"""`focalstream tokenize`: a manifest or a directory of audio to token shards."""

from __future__ import annotations

import argparse
import json
import sys

from pipelines.commands.selection_options import add_selection_arguments, read_selection
from pipelines.commands.sharding_options import add_sharding_arguments, read_sharding
from pipelines.encoding import Encoding
from pipelines.places import local_folder
from pipelines.tokenize import Job, Result, tokenize


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_selection_arguments(parser)
    parser.add_argument(
        "out",
        metavar="OUT",
        type=local_folder,
        help="folder of the dataset. The same command again continues a run that was interrupted",
    )
    parser.add_argument("--codec", default="small", help="shipped name, directory, or Hugging Face Hub id")
    add_sharding_arguments(parser)
    parser.add_argument(
        "--engine",
        choices=("inline", "local"),
        help="in this process, or by worker processes of this machine, which survive cuts that crash them; when not "
        "given, local where there are several workers and shards, or where the run was interrupted before",
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
    parser.add_argument(
        "--retry-quarantined",
        action="store_true",
        help="where OUT is finished: try again the cuts in quarantine.jsonl, and nothing else",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    result = tokenize(
        Job(
            source=args.source,
            out=args.out,
            codec=args.codec,
            sharding=read_sharding(args),
            selection=read_selection(args),
            encoding=Encoding(batch_seconds=args.batch_seconds, device=args.device),
            workers=args.workers,
            engine=args.engine,
            max_quarantine_rate=args.max_quarantine_rate,
            retry_quarantined=args.retry_quarantined,
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
