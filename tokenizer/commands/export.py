"""`focalstream export CODEC OUT_DIR`: a streaming codec as ONNX graphs, with a note on running them elsewhere."""

from __future__ import annotations

import argparse

from tokenizer.commands.codec_options import CODEC_HELP
from tokenizer.hub import add_push_arguments, check_push, push_as_asked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("codec", metavar="CODEC", help=CODEC_HELP)
    parser.add_argument("output", metavar="OUT_DIR", help="new or empty folder to write")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "int8"), help="of the weights")
    add_push_arguments(parser, "the folder")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from tokenizer import Codec
    from tokenizer.onnx_engine.export import export

    check_push(args)
    folder = Path(args.output)
    export(Codec.from_pretrained(args.codec), folder, args.precision)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: encode_step.onnx and decode_step.onnx, {args.precision}, {size / 1e6:.1f} MB; see its README.md")
    push_as_asked(args, folder, ("speech", "audio-codec", "onnx"), library="onnx")
    return 0
