"""`focalstream export-dataset`: a tokenized dataset as Parquet, for Hugging Face `datasets`."""

from __future__ import annotations

import argparse

from pipelines.storage.folders import local_folder
from pipelines.tools.parquet import export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="DATASET", type=local_folder, help="a finished dataset; it stays as it is")
    parser.add_argument("out", metavar="OUT", type=local_folder, help="new folder, to be loaded or uploaded as it is")
    parser.add_argument("--split", default="train", help="name of the split that the cuts become")


def run(args: argparse.Namespace) -> int:
    totals = export(args.source, args.out, args.split)
    print(f"{args.out}: {totals.cuts:,} cuts; read it with datasets.load_dataset({str(args.out)!r})")
    return 0
