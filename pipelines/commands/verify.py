"""`focalstream verify`: read a tokenized dataset again and list everything that is wrong with it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pipelines.bulk.executors.local import check_workers
from pipelines.bulk.executors.slurm import read_part
from pipelines.format.description import read_description
from pipelines.format.layout import Layout
from pipelines.storage.folders import dataset_folder
from pipelines.tools.other_readers import installed_readers
from pipelines.tools.verify import Share, verify
from tokenizer.errors import counted, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "out", metavar="OUT", type=dataset_folder, help="folder or URL written by `focalstream tokenize`"
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that read shards")
    parser.add_argument(
        "--part",
        metavar="I/N",
        help="read part I of N of the shards; slurm: take I and N from the Slurm job array. The first part also checks "
        "what is in no shard",
    )
    parser.add_argument("--sample", type=int, metavar="N", help="read N shards only, spread evenly")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 when the dataset is sound, 1 when anything is wrong."""
    check_workers(args.workers)
    share = Share(read_part(args.part) if args.part else None, args.sample)
    problems = verify(args.out, share, args.workers)
    readers = list(installed_readers()) if isinstance(args.out, Path) else []
    if args.json:
        json.dump({"out": str(args.out), "readers": readers, "problems": problems}, sys.stdout)
        print()
    elif problems:
        print("\n".join(map(printable, problems)))
        print(f"{args.out}: {counted(len(problems), 'problem')}")
    else:
        description = read_description(Layout(args.out))
        totals, read = description.totals, share.of(description.shards)
        some = f" in the {counted(len(read), 'shard')} that were read" if len(read) < len(description.shards) else ""
        print(
            f"{args.out}: sound{some}. {counted(totals.cuts, 'cut')}, {counted(totals.tokens, 'token')}, "
            f"{totals.quarantined} quarantined; read by "
            f"{', '.join(readers) or 'our own reader only, as always behind a URL'}"
        )
    return 1 if problems else 0
