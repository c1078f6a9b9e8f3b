"""`focalstream train-text DATASET... OUT.model`: the pieces that a language model reads and writes text in."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        nargs="+",
        metavar="DATASET",
        help="datasets written by `focalstream tokenize`, folders or URLs, whose cuts have texts",
    )
    parser.add_argument("output", type=Path, metavar="OUT.model", help="SentencePiece model to write")
    parser.add_argument("--pieces", type=int, default=1000, help="size of the text vocabulary")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="local folder that files behind URLs come into")


def run(args: argparse.Namespace) -> int:
    from pipelines.dataset.token_dataset import TokenDataset
    from slm.text_model import TextModel, texts_of
    from tokenizer.errors import InputError

    if args.output.is_dir() or not args.output.parent.is_dir():
        raise InputError(f"{args.output}: cannot be written; name a file in a folder that is there")
    texts = list(texts_of(TokenDataset(args.data, args.cache).cuts()))
    model = TextModel.train(texts, args.pieces)
    model.save(args.output)
    spelt = [model.encode(text) for text in texts if text]
    characters, pieces = sum(map(len, texts)), sum(map(len, spelt))
    print(f"{args.output}: {model.pieces:,} pieces from {len(spelt):,} texts of {len(texts):,} cuts")
    print(f"{characters:,} characters in {pieces:,} pieces, {characters / pieces:.2f} a piece")
    return 0
