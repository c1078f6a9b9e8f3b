"""The options of commands that encode or decode: which codec, where, and how it runs."""

from __future__ import annotations

import argparse
from typing import Any

CODEC_HELP = "shipped name, folder, or id on the Hugging Face Hub"


def add_codec_arguments(parser: argparse.ArgumentParser, codec_help: str = CODEC_HELP) -> None:
    """Declare --codec, --device, --engine and --precision."""
    parser.add_argument("--codec", default="small", help=codec_help)
    parser.add_argument("--device", default="cpu", help='"cpu" or "cuda"')
    parser.add_argument(
        "--engine", default="torch", choices=("torch", "onnx"), help="onnx: several times as fast on CPU"
    )
    parser.add_argument(
        "--precision", default="fp32", choices=("fp32", "bf16", "int8"), help="bf16 needs torch, int8 needs onnx"
    )


def load_codec(args: argparse.Namespace) -> Any:
    """The `Codec` or `OnnxCodec` that the options name; the commands use what both have. Raises InputError."""
    from tokenizer import Codec

    return Codec.from_pretrained(args.codec, args.device, engine=args.engine, precision=args.precision)
