"""`focalstream repair`: make damaged or missing files of a dataset again."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from pipelines.storage.folders import dataset_folder
from pipelines.tools.repair import Repaired, repair
from tokenizer.errors import counted, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", type=dataset_folder, help="folder written by `focalstream tokenize`")
    parser.add_argument("--codec", help="where the codec is now; when not given, where it was")
    parser.add_argument("--device", help='where the codec runs: "cpu", "cuda", "cuda:1"; when not given, as it was')
    parser.add_argument(
        "--workers", type=int, metavar="N", help="worker processes; when not given, one per CPU core, or one on a GPU"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 when every file has its original bytes, 1 when shards were made again with others."""
    repaired = repair(args.out, args.codec, args.device, args.workers)
    if args.json:
        json.dump({"out": str(args.out), **asdict(repaired)}, sys.stdout)
        print()
    else:
        print(printable(f"{args.out}: {_sentence(repaired)}"))
    return 0 if repaired.is_original else 1


def _sentence(repaired: Repaired) -> str:
    if not repaired.files and not repaired.shards:
        return "sound; nothing to do"
    shards = [f"shard {shard}" for shard in repaired.shards]
    done = f"restored {', '.join([*repaired.files, *shards])}"
    if repaired.is_original:
        return f"{done}; every file has its original bytes"
    if repaired.lost_cuts:
        return (
            f"{done}, but {counted(repaired.lost_cuts, 'cut')} can no longer be read: see quarantine.jsonl, fix the "
            "cause, and use `focalstream tokenize --retry-quarantined`"
        )
    return f"{done}; what was made again has other bytes than before (another machine, version or audio), and is sound"
