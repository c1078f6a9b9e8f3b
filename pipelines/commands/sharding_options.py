"""The options that say when a shard is full; every command that writes a dataset has them."""

from __future__ import annotations

import argparse

from pipelines.bulk.plan import Sharding


def add_sharding_arguments(parser: argparse.ArgumentParser) -> None:
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--shard-cuts", type=int, metavar="N", help="cuts in a shard, instead of hours")
    size.add_argument("--shard-hours", type=float, default=1.0, metavar="H", help="hours of audio in a shard")
    parser.add_argument(
        "--pack",
        action="store_true",
        help="write packed/ as well: the codes bit by bit, about a seventh of the size of the tars",
    )


def read_sharding(args: argparse.Namespace) -> Sharding:
    """Raises InputError for sizes that make no sense."""
    return Sharding(args.shard_cuts, args.shard_hours if args.shard_cuts is None else None, args.pack)
