"""`focalstream export-dataset`: a tokenized dataset for Hugging Face `datasets` or Megatron."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from pipelines.storage.folders import RemotePath, dataset_folder, local_folder
from pipelines.tools.arrow import write_arrow
from pipelines.tools.export import export
from pipelines.tools.megatron import Ids, write_megatron
from pipelines.tools.parquet import write_parquet
from tokenizer.errors import InputError
from tokenizer.hub import add_push_arguments, check_push, push_as_asked

NO_ID = -1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="DATASET", type=local_folder, help="a finished dataset; it stays as it is")
    parser.add_argument("out", metavar="OUT", type=dataset_folder, help="new folder or URL, to be loaded as it is")
    parser.add_argument(
        "--format",
        choices=("parquet", "arrow", "megatron"),
        default="parquet",
        help="parquet: for datasets.load_dataset and the Hub; arrow: for datasets.load_from_disk; megatron: indexed "
        "dataset OUT/tokens.bin and .idx",
    )
    parser.add_argument("--split", help="parquet, arrow: name of the split that the cuts become (default: train)")
    for name, meaning in (
        ("--first-code", "id of the codec's token 0"),
        ("--begin", f"id before each cut; {NO_ID}: none"),
        ("--end", f"id after each cut; {NO_ID}: none"),
    ):
        default = getattr(Ids(), name[2:].replace("-", "_"))
        parser.add_argument(
            name,
            type=int,
            metavar="ID",
            help=f"megatron: {meaning} (default: {default}, as in the language models of `train-lm`)",
        )
    add_push_arguments(parser, "OUT (parquet)")


def run(args: argparse.Namespace) -> int:
    given = {name: value for name in ("first_code", "begin", "end") if (value := getattr(args, name)) is not None}
    if args.format == "megatron" and args.split is not None:
        raise InputError("--split: an indexed dataset has none; leave it out, or use --format parquet or arrow")
    check_push(args)
    if args.format != "parquet" and args.push is not None:
        raise InputError("--push: the Hub reads Parquet; use --format parquet")
    if isinstance(args.out, RemotePath) and args.push is not None:
        raise InputError(f"--push: uploads a local folder, and OUT is {args.out}; give a folder")
    if args.format != "megatron" and given:
        raise InputError(f"--{next(iter(given)).replace('_', '-')}: is for --format megatron; others keep the codes")
    if args.format == "megatron":
        chosen: dict[str, Any] = {
            name: None if value == NO_ID and name != "first_code" else value for name, value in given.items()
        }
        totals = export(args.source, args.out, partial(write_megatron, ids=Ids(**chosen)))
        use = f"read it as --data-path {args.out}/tokens; ids are in {args.out}/README.md"
    else:
        write = write_parquet if args.format == "parquet" else write_arrow
        totals = export(args.source, args.out, partial(write, split=args.split or "train"))
        if args.format == "arrow":
            call = f"load_from_disk({str(args.out)!r})"
        elif isinstance(args.out, RemotePath):  # load_dataset takes no URL of a folder
            call = f"load_dataset('parquet', data_files={f'{args.out}/data/*.parquet'!r})"
        else:
            call = f"load_dataset({str(args.out)!r})"
        use = f"read it with datasets.{call}"
    print(f"{args.out}: {totals.cuts:,} cuts; {use}")
    push_as_asked(args, args.out, ["speech-tokens"], "dataset")
    return 0
