"""`focalstream train-text --data DATASET... --out FILE`: the text model that a language model reads and writes with."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        nargs="+",
        action="extend",
        default=[],
        metavar="DATASET",
        help="datasets written by `focalstream tokenize`, folders or URLs, whose cuts have texts",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="SentencePiece model to write, such as text.model")
    parser.add_argument("old", nargs="*", metavar="DATASET ... OUT", help=argparse.SUPPRESS)
    parser.add_argument("--pieces", type=int, default=1000, help="size of the text vocabulary")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="local folder for files behind URLs")


def run(args: argparse.Namespace) -> int:
    """Train the text model and report its size."""
    from pipelines.dataset.token_dataset import TokenDataset
    from slm.text_model import TextModel, texts_of
    from tokenizer.commands.old_options import note
    from tokenizer.errors import InputError

    data, out = args.data, args.out
    if len(args.old) > 1 and not data and out is None:
        data, out = args.old[:-1], Path(args.old[-1])
        note("DATASET ... OUT is now --data DATASET ... --out OUT; the next release drops the old form")
    elif args.old or not data or out is None:
        raise InputError("expected --data DATASET ... and --out FILE, and nothing else without an option")
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"{out}: cannot be written; name a file in an existing folder")
    texts = list(texts_of(TokenDataset(data, args.cache).cuts()))
    model = TextModel.train(texts, args.pieces)
    model.save(out)
    encoded = [model.encode(text) for text in texts if text]
    characters, pieces = sum(map(len, texts)), sum(map(len, encoded))
    print(f"{out}: {model.pieces:,} pieces from {len(encoded):,} texts of {len(texts):,} cuts")
    print(f"{characters:,} characters in {pieces:,} pieces, {characters / pieces:.2f} a piece")
    return 0
