"""`focalstream train-lm`: token shards to a trained language model."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
from pathlib import Path

from slm.settings import TrainSettings, read_settings

SIGNALS = ("SIGTERM", "SIGINT")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; each setting of the config's `train` section has one that overrides it."""
    parser.add_argument(
        "--config", required=True, default=argparse.SUPPRESS, metavar="FILE", help="YAML file, or 'tiny' or 'small'"
    )
    parser.add_argument(
        "--data",
        required=True,
        default=argparse.SUPPRESS,
        nargs="+",
        metavar="DATASET",
        help="datasets written by `focalstream tokenize`: folders or URLs; with DATASET:WEIGHT each, rows are mixed by "
        "weight; or one YAML file of lines 'DATASET: WEIGHT'",
    )
    parser.add_argument(
        "--held-out",
        nargs="+",
        default=[],
        metavar="DATASET",
        help="datasets for validation; without, a share of the cuts of --data",
    )
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="local folder that shards of datasets behind URLs come into"
    )
    parser.add_argument(
        "--out", required=True, default=argparse.SUPPRESS, type=Path, metavar="DIR", help="folder of the run"
    )
    parser.add_argument(
        "--init-from",
        metavar="MODEL",
        help="begin with the weights of a text Llama (a folder in transformers' layout; its embedding is made anew) or "
        "of a speech model",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the latest checkpoint in --out")
    parser.add_argument("--device", default="cpu", help="torch device, for example cuda")
    parser.add_argument("--json", action="store_true", help="print the closing report as JSON")
    overrides = parser.add_argument_group("settings that override the config's `train` section")
    kinds = {"int": int, "float": float}
    for setting in dataclasses.fields(TrainSettings):
        flag, text = f"--{setting.name.replace('_', '-')}", setting.metadata["help"]
        if setting.type == "bool":
            overrides.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            kind = kinds[str(setting.type)]
            overrides.add_argument(flag, type=kind, default=argparse.SUPPRESS, metavar=kind.__name__.upper(), help=text)


def run(args: argparse.Namespace) -> int:
    """Train; 0 when the run came to its end, 128 + the signal's number when a signal stopped it."""
    from slm.train import train

    names = {setting.name for setting in dataclasses.fields(TrainSettings)}
    overrides = {name: value for name, value in vars(args).items() if name in names}
    model, settings = read_settings(args.config, overrides)
    report = train(
        model,
        settings,
        args.data,
        args.out,
        args.held_out,
        args.resume,
        args.device,
        cache=args.cache,
        init_from=args.init_from,
    )
    if args.json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        print(f"{report.parameters / 1e6:.2f} M parameters, {report.training_tokens:,} tokens an epoch")
        print(f"stopped by {report.stopped_by} after step {report.step} ({report.epochs:.2f} epochs)")
        if report.best_bits_per_token is not None:
            print(
                f"best at step {report.best_step}: {report.best_bits_per_token:.3f} bits per held-out token, "
                f"{report.best_bits_per_second:.1f} bits per second of speech"
            )
        if report.stopped_by in SIGNALS:
            print("go on with the same command and --resume")
        if report.codec_streams:
            print(f"use it with `focalstream continue PROMPT.wav OUT.wav --lm {args.out}`")
        else:
            print(
                "`focalstream continue` needs a codec that streams, and this one does not: use slm.generate in Python"
            )
    return 128 + signal.Signals[report.stopped_by] if report.stopped_by in SIGNALS else 0
