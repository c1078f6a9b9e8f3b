"""`focalstream split`: one tokenized dataset divided into several."""

from __future__ import annotations

import argparse

from pipelines.commands.corpus_options import add_sharding_arguments, read_sharding
from pipelines.storage.folders import dataset_folder
from pipelines.tools.rewrite import BY, split
from tokenizer.errors import InputError, counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="DATASET", type=dataset_folder, help="a finished dataset; it stays as it is")
    parser.add_argument("out", metavar="OUT", type=dataset_folder, help="folder of the new datasets OUT/NAME")
    parser.add_argument("shares", metavar="NAME=SHARE", nargs="+", help="such as train=0.98 test=0.02; together 1")
    parser.add_argument(
        "--by",
        choices=tuple(BY),
        default="cut",
        help="what stays together in one part; a cut that does not say its speaker or recording stays by itself",
    )
    add_sharding_arguments(parser)


def run(args: argparse.Namespace) -> int:
    shares: dict[str, float] = {}
    for given in args.shares:
        name, _, share = given.partition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            raise InputError(f"{given}: expected NAME=SHARE, such as test=0.02") from None
    for name, description in split(args.source, args.out, shares, args.by, read_sharding(args)).items():
        totals = description.totals
        print(f"{args.out / name}: {counted(totals.cuts, 'cut')}, {totals.hours:.2f} h")
    return 0
