"""`focalstream export-lm LM OUT_DIR`: a language model for transformers, vLLM and their like."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lm", metavar="LM", help="shipped name, checkpoint folder or training run")
    parser.add_argument("output", metavar="OUT_DIR", type=Path, help="folder to make; it may be there and empty")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="of the stored weights"
    )


def run(args: argparse.Namespace) -> int:
    from slm.checkpoint import load_lm
    from slm.llama import export_lm

    model, vocabulary = load_lm(args.lm)
    export_lm(model, vocabulary, args.output, args.dtype)
    size = sum(path.stat().st_size for path in args.output.iterdir())
    kind = f"LlamaForCausalLM, {args.dtype}, {vocabulary.size:,} ids"
    print(f"{args.output}: {kind}, {size / 1e6:.1f} MB; see its README.md")
    return 0
