"""Where the result of an evaluation goes: a table on the terminal, and for those who ask JSON and a page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from tokenizer.files import check_place, write_atomically


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --html and --json."""
    parser.add_argument("--html", metavar="OUT.html", help="write a page with figures and sound, one file")
    parser.add_argument(
        "--json",
        metavar="OUT.json",
        nargs="?",
        const="-",
        help="write the figures; without a name: print them instead of the table",
    )


def check_outputs(args: argparse.Namespace) -> None:
    """Raise InputError, before minutes of work, if a file of that name cannot be written."""
    for path in (args.html, args.json):
        if path not in (None, "-"):
            check_place(path)


def write_outputs(args: argparse.Namespace, result: dict[str, Any], table: str, page: Callable[[], str]) -> None:
    """Print the table or the JSON, and write the files that were asked for; `page` makes the HTML."""
    text = json.dumps(result, indent=1)
    print(text if args.json == "-" else table)
    if args.json not in (None, "-"):
        write_atomically(args.json, text.encode())
    if args.html:
        write_atomically(args.html, page().encode())
