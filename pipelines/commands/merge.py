"""`focalstream merge`: several tokenized datasets of one codec as one."""

from __future__ import annotations

import argparse

from pipelines.commands.corpus_options import add_sharding_arguments, read_sharding
from pipelines.storage.folders import dataset_folder
from pipelines.tools.rewrite import merge
from tokenizer.errors import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", type=dataset_folder, help="folder of the new dataset")
    parser.add_argument(
        "sources", metavar="DATASET", type=dataset_folder, nargs="+", help="at least two finished datasets"
    )
    add_sharding_arguments(parser)


def run(args: argparse.Namespace) -> int:
    totals = merge(args.sources, args.out, read_sharding(args)).totals
    print(f"{args.out}: {counted(totals.cuts, 'cut')}, {totals.hours:.2f} h, {totals.quarantined} quarantined")
    return 0
