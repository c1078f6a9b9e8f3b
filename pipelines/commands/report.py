"""`focalstream report`: what is in a tokenized dataset, as figures and as a page with plots and sound."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.storage.folders import dataset_folder

if TYPE_CHECKING:
    from pipelines.bulk.progress import Speed
    from pipelines.report.figures import Figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "out", metavar="OUT", type=dataset_folder, help="folder or URL written by `focalstream tokenize`"
    )
    parser.add_argument("--html", metavar="FILE", help="write a page with plots and samples to hear, one file")
    parser.add_argument(
        "--sample-shards",
        type=int,
        metavar="N",
        help="read N shards spread evenly over the dataset; when not given, all of them",
    )
    parser.add_argument("--samples", type=int, default=6, metavar="N", help="cuts that the page lets one hear")
    parser.add_argument("--codec", help="where the codec of the samples is now; when not given, where it was")
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="of `focalstream tokenize --log`: the page has the speed"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from pipelines.bulk.progress import read_speed
    from pipelines.format.description import read_intact
    from pipelines.format.layout import Layout
    from pipelines.report.figures import collect
    from pipelines.report.report_page import render
    from pipelines.report.samples import Sample, decode_samples, find_codec
    from tokenizer.errors import InputError, printable
    from tokenizer.files import check_place, write_atomically

    for option, least in (("sample_shards", 1), ("samples", 0)):
        value = getattr(args, option)
        if value is not None and value < least:
            raise InputError(f"--{option.replace('_', '-')} is {value}, expected at least {least}")
    if args.html:
        check_place(args.html)  # before minutes of work
    speed = read_speed(args.log) if args.log else None
    shards = len(read_intact(Layout(args.out)).shards)
    with tqdm(total=min(shards, args.sample_shards or shards), unit="shard", disable=not sys.stderr.isatty()) as bar:
        figures = collect(args.out, args.sample_shards, bar.update)
    if args.html:
        samples: list[Sample] = []
        silent = "No samples were asked for."
        if args.samples and shards:
            try:
                samples = decode_samples(args.out, find_codec(figures.description, args.codec), args.samples)
            except (InputError, FileNotFoundError) as error:
                silent = f"No samples: {error}."
                print(f"focalstream report: no samples: {printable(str(error))}", file=sys.stderr)
        page = render(args.out.absolute().name, figures, samples, silent, speed)
        write_atomically(args.html, page.encode("utf-8", "surrogateescape").decode("utf-8", "replace").encode())
    if args.json:
        result = figures.to_dict()
        json.dump(
            {"out": str(args.out), **result, **({"times_real_time": speed.times_real_time} if speed else {})},
            sys.stdout,
        )
        print()
    else:
        print(printable("\n".join(_lines(args, figures, speed))))
    return 0


def _lines(args: argparse.Namespace, figures: Figures, speed: Speed | None) -> list[str]:
    from pipelines.report import summary
    from tokenizer.errors import counted

    totals = figures.description.totals
    lines = [
        f"audio       {counted(totals.cuts, 'cut')}, {totals.hours:,.2f} h, "
        f"{counted(totals.tokens, 'token')} in {counted(len(figures.description.shards), 'shard')}",
        f"codes       {summary.codes_text(figures)}",
        f"size        {summary.size_text(figures)}",
        f"quarantine  {summary.quarantine_text(figures)}",
    ]
    lines += [f"speed       {summary.speed_text(speed)}"] if speed else []
    return lines + ([f"look        {args.html}"] if args.html else [])
