"""`focalstream export-dataset`: a tokenized dataset for Hugging Face `datasets` or Megatron."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from pipelines.storage.folders import local_folder
from pipelines.tools.arrow import write_arrow
from pipelines.tools.export import export
from pipelines.tools.hub_card import upload_list
from pipelines.tools.megatron import Ids, write_megatron
from pipelines.tools.parquet import write_parquet
from tokenizer.errors import InputError

NO_ID = -1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="DATASET", type=local_folder, help="a finished dataset; it stays as it is")
    parser.add_argument("out", metavar="OUT", type=local_folder, help="new folder, to be loaded or uploaded as it is")
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
    parser.add_argument(
        "--hub-dry-run", metavar="USER/NAME", help="parquet: list what an upload of OUT as this repository would make"
    )


def run(args: argparse.Namespace) -> int:
    given = {name: value for name in ("first_code", "begin", "end") if (value := getattr(args, name)) is not None}
    if args.format == "megatron" and args.split is not None:
        raise InputError("--split: an indexed dataset has none; leave it out, or use --format parquet or arrow")
    if args.format != "parquet" and args.hub_dry_run is not None:
        raise InputError("--hub-dry-run: the Hub reads Parquet; use --format parquet")
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
        reader = "load_dataset" if args.format == "parquet" else "load_from_disk"
        use = f"read it with datasets.{reader}({str(args.out)!r})"
    print(f"{args.out}: {totals.cuts:,} cuts; {use}")
    if args.hub_dry_run is not None:
        files = upload_list(args.out)
        for name, size in files:
            print(f"{size:>14,}  {name}")
        print(f"{sum(size for _, size in files):>14,}  bytes in {len(files)} files; nothing was uploaded. To do it:")
        print(f"hf upload {args.hub_dry_run} {args.out} . --repo-type dataset")
    return 0
