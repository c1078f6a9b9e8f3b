"""The options of commands that generate: which engine computes the language model, and in what precision."""

from __future__ import annotations

import argparse


def add_lm_engine_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Declare them; `default` says in the help what happens without --lm-engine."""
    parser.add_argument(
        "--lm-engine",
        choices=("torch", "onnx"),
        help=f"engine of the language model; onnx needs --engine onnx, and then the process does without PyTorch "
        f"(default: {default})",
    )
    parser.add_argument(
        "--lm-precision", default="fp32", choices=("fp32", "int8"), help="of the language model; int8 needs onnx"
    )


def check_lm_engine(args: argparse.Namespace, engine: str, lm_engine: str) -> None:
    """Raise InputError for engines, precisions and a device that do not go together."""
    from tokenizer.errors import InputError
    from tokenizer.machine import check_engine

    if lm_engine == "onnx" and engine != "onnx":
        raise InputError(f"--lm-engine onnx with --engine {engine}: expected --engine onnx too")
    if args.lm_precision == "int8" and lm_engine != "onnx":
        raise InputError("--lm-precision int8: runs on ONNX Runtime; add --lm-engine onnx")
    check_engine(engine, args.precision, args.device)
