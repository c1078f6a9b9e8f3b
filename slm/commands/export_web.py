"""`focalstream export-web OUT_DIR`: live continuation as a static folder that runs in the visitor's browser."""

from __future__ import annotations

import argparse
from pathlib import Path

from slm.commands.lm_options import LM_HELP
from tokenizer.commands.codec_options import CODEC_HELP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUT_DIR", type=Path, help="new or empty folder to write")
    parser.add_argument("--codec", default="small", help=CODEC_HELP)
    parser.add_argument("--lm", default="small", help=LM_HELP)
    parser.add_argument("--precision", default="int8", choices=("fp32", "int8"), help="of both models")
    parser.add_argument(
        "--runtime",
        metavar="FOLDER_OR_TGZ",
        type=Path,
        help="the npm package onnxruntime-web, packed or unpacked, where it cannot be downloaded",
    )


def run(args: argparse.Namespace) -> int:
    """Write the folder and report its size."""
    from slm.checkpoint import locate
    from slm.web.export import export_web
    from slm.web.runtime import VERSION, runtime_files
    from tokenizer import Codec
    from tokenizer.onnx_engine.export import require_onnx

    require_onnx()
    runtime = runtime_files(args.runtime)
    codec = Codec.from_pretrained(args.codec)
    name, lm_name = Path(args.codec).name, Path(args.lm).name
    export_web(codec, locate(args.lm), name, lm_name, args.output, args.precision, runtime)
    size = sum(path.stat().st_size for path in args.output.rglob("*") if path.is_file())
    print(
        f"{args.output}: {args.precision}, onnxruntime-web {VERSION}, {size / 1e6:.1f} MB to download; to try it: "
        f"python -m http.server --directory {args.output}"
    )
    return 0
