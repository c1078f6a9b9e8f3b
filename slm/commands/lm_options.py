"""The options that commands with a language model share: the model and its data, the engine that computes it, in what
precision, and how codes are drawn."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slm.generation.sampling import Sampling

LM_HELP = "shipped name, training run, checkpoint or exported folder"


def add_lm_engine_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Declare --lm-engine and --lm-precision; `default` says in the help which engine is used without --lm-engine."""
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


def add_lm_and_data(parser: argparse.ArgumentParser, data: str) -> None:
    """Declare --lm, --data and --cache of a command that runs a language model on datasets; `data`: help on those."""
    parser.add_argument("--lm", default="small", help=LM_HELP)
    parser.add_argument(
        "--data",
        required=True,
        default=argparse.SUPPRESS,
        nargs="+",
        action="extend",
        metavar="DATASET",
        help=f"{data}: folders or URLs",
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="local folder for shards behind URLs")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the settings of `Sampling`."""
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="sampling temperature; 0: always the most likely code"
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="sample from the K most likely codes; 0: off")
    parser.add_argument(
        "--top-p",
        type=float,
        default=0.95,
        metavar="P",
        help="sample from the most likely codes that together reach P; 1: off",
    )
    parser.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="exclude codes below P times the highest probability; 0: off",
    )
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, help="factor on log-probabilities of recent codes; 1: off"
    )
    parser.add_argument("--repetition-window", type=int, default=50, metavar="CODES", help="codes that count as recent")


def add_silence_limit(parser: argparse.ArgumentParser) -> None:
    """Declare it, for commands that generate speech."""
    parser.add_argument(
        "--silence-limit", type=int, default=0, metavar="CODES", help="silent codes in a row, at most; 0: no limit"
    )


def check_seed(seed: int) -> None:
    """Raise InputError for a seed that `slm.generation.sampling.RandomStream` does not take."""
    from tokenizer.errors import InputError

    if not 0 <= seed < 2**63:
        raise InputError(f"--seed {seed}: expected 0 to 2^63 - 1")


def sampling_of(args: argparse.Namespace) -> Sampling:
    """The settings that were given. Raises InputError for one that is out of its range."""
    from slm.generation.sampling import Sampling

    return Sampling(
        repetition_penalty=args.repetition_penalty,
        repetition_window=args.repetition_window,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        silence_limit=getattr(args, "silence_limit", 0),
    )
