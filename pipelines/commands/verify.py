"""`focalstream verify`: read a tokenized dataset again and list everything that is wrong with it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pipelines.format.description import read_description
from pipelines.format.layout import Layout
from pipelines.storage.folders import dataset_folder
from pipelines.tools.verify import installed_readers, verify
from tokenizer.errors import counted, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "out", metavar="OUT", type=dataset_folder, help="folder or URL written by `focalstream tokenize`"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 when the dataset is sound, 1 when anything is wrong."""
    problems = verify(args.out)
    readers = list(installed_readers()) if isinstance(args.out, Path) else []
    if args.json:
        json.dump({"out": str(args.out), "readers": readers, "problems": problems}, sys.stdout)
        print()
    elif problems:
        print("\n".join(map(printable, problems)))
        print(f"{args.out}: {counted(len(problems), 'problem')}")
    else:
        totals = read_description(Layout(args.out)).totals
        print(
            f"{args.out}: sound. {counted(totals.cuts, 'cut')}, {counted(totals.tokens, 'token')}, "
            f"{totals.quarantined} quarantined; read by "
            f"{', '.join(readers) or 'our own reader only, as always behind a URL'}"
        )
    return 1 if problems else 0
