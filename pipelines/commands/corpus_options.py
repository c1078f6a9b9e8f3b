"""Options of several commands: which cuts of an input take part, and when a shard of a dataset is full."""

from __future__ import annotations

import argparse
import math

from pipelines.bulk.plan import Sharding
from pipelines.bulk.stored_plan import stored_identity
from pipelines.format.layout import Layout
from pipelines.sources.cuts import Selection
from pipelines.sources.manifests import find_inputs, manifest_bytes

SOURCE_HELP = (
    "Lhotse cuts or recordings (.jsonl, .jsonl.gz), a Shar folder, a folder of audio files (searched recursively; "
    "hidden files are left out), an audio file, or a quoted glob of these; each a path or a URL (s3://, gs://, hf://, "
    "http:// ... with the fsspec package of that protocol)"
)


HOURS, MANY_HOURS = 1.0, 10.0  # of audio in a shard; the latter for large corpora
LARGE_BYTES = 4 << 30  # of manifests, unpacked


def add_selection_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="MANIFEST_OR_DIR", help=SOURCE_HELP)
    parser.add_argument("--min-seconds", type=float, default=0.0, metavar="S", help="skip shorter cuts, and count them")
    parser.add_argument(
        "--max-seconds", type=float, default=math.inf, metavar="S", help="skip longer cuts, and count them"
    )
    parser.add_argument(
        "--channel",
        type=int,
        metavar="C",
        help="of recordings with several channels take channel C, counted from 0; when not given, the mean of all",
    )
    add_access_arguments(parser)


def add_access_arguments(parser: argparse.ArgumentParser) -> None:
    """What a manifest may do besides naming files; `args.allow_commands` and `args.allow_host`."""
    parser.add_argument(
        "--allow-commands",
        action="store_true",
        help="run the shell commands that a manifest gives as sources of audio (Lhotse's type command); whoever wrote "
        "the manifest can then run anything on this machine",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="H",
        help="of a manifest that came from a URL, read audio from this host too (https://host, s3://bucket; file:// is "
        "this machine); may be given several times",
    )


def read_selection(args: argparse.Namespace) -> Selection:
    """Raises InputError for limits that make no sense."""
    return Selection(
        args.min_seconds, args.max_seconds, args.channel, args.allow_commands, tuple(sorted(set(args.allow_host)))
    )


def add_sharding_arguments(parser: argparse.ArgumentParser) -> None:
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--shard-cuts", type=int, metavar="N", help="cuts in a shard, instead of hours")
    size.add_argument(
        "--shard-hours",
        type=float,
        metavar="H",
        help=f"hours of audio in a shard; when not given {HOURS:g}, and for tokenize and plan {MANY_HOURS:g} where the "
        f"manifests have more than {LARGE_BYTES >> 30} GiB (a few million cuts). A run continues with what it "
        "began with",
    )
    parser.add_argument(
        "--pack",
        action="store_true",
        help="write packed/ as well: the tokens bit by bit, about a seventh of the size of the tars",
    )


def read_sharding(args: argparse.Namespace, hours: float = HOURS) -> Sharding:
    """What the options say; without one, shards of so many hours. Raises InputError for sizes that make no sense."""
    given = args.shard_hours if args.shard_hours is not None else hours
    return Sharding(args.shard_cuts, given if args.shard_cuts is None else None, args.pack)


def default_shard_hours(source: str, layout: Layout | None = None) -> float:
    """Hours of a shard where no option says: those of the run in `layout`, or by the size of the manifests.

    A hundred thousand shards make a `dataset.json` of 80 MB, and four times as many files to list. Raises InputError
    where there is no input.
    """
    begun = stored_identity(layout) if layout is not None else None
    if begun is not None and "hours" in begun.get("sharding", {}):
        return begun["sharding"]["hours"]
    return MANY_HOURS if manifest_bytes(find_inputs(source)) > LARGE_BYTES else HOURS
