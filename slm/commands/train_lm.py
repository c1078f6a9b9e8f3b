"""`focalstream train-lm`: token shards to a trained language model."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from slm.training.settings import TrainSettings, read_settings
from tokenizer.errors import InputError
from tokenizer.hub import add_push_arguments, check_push
from tokenizer.machine import check_device
from tokenizer.parsed import values_of_pairs

if TYPE_CHECKING:
    from slm.training.preferences.training import PreferenceReport
    from slm.training.reporting import TrainReport

SIGNALS = ("SIGTERM", "SIGINT")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; each setting of the config's `train` section has one that overrides it."""
    parser.add_argument(
        "--config",
        required=True,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="YAML file, or tiny, small, 25m, 100m, 350m",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        action="extend",
        default=[],
        metavar="DATASET",
        help="datasets written by `focalstream tokenize`: folders or URLs; DATASET:WEIGHT mixes rows by "
        "weight; or one YAML file with lines 'DATASET: WEIGHT'",
    )
    parser.add_argument(
        "--held-out",
        nargs="+",
        action="extend",
        default=[],
        metavar="DATASET",
        help="datasets for validation; default: a share of the recordings of --data",
    )
    parser.add_argument(
        "--preferences",
        type=Path,
        metavar="PAIRS.jsonl",
        help="instead of --data: train the model of --init-from to prefer the better continuations of this file (DPO), "
        "written by `focalstream sample-pairs`; a step takes --rows pairs",
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="local folder for shards behind URLs")
    parser.add_argument(
        "--out", required=True, default=argparse.SUPPRESS, type=Path, metavar="DIR", help="folder of the run"
    )
    parser.add_argument(
        "--init-from",
        metavar="MODEL",
        help="initial weights: a text Llama (a folder in transformers' layout; its embedding is replaced) or a speech "
        "model",
    )
    parser.add_argument(
        "--related-codec",
        action="store_true",
        help="keep the codes of --init-from though the datasets are of another codec, one that was trained on from the "
        "old codec's weights",
    )
    parser.add_argument(
        "--text-model",
        type=Path,
        metavar="FILE",
        help="written by `focalstream train-text`, for tasks with text (--text-to-speech-weight and the like)",
    )
    parser.add_argument("--resume", action="store_true", help="resume from the latest checkpoint in --out")
    parser.add_argument(
        "--resume-from",
        type=int,
        metavar="STEP",
        help="resume from the checkpoint of this step in --out, and remove the later ones",
    )
    parser.add_argument(
        "--device", default="cpu", help="torch device, for example cuda (with torchrun, one per process)"
    )
    parser.add_argument(
        "--codec", help="the datasets' codec, to write the samples of --sample-every as audio; default: tokens only"
    )
    parser.add_argument(
        "--wandb", metavar="PROJECT", help="log to this project of Weights & Biases as well (focalstream[wandb])"
    )
    parser.add_argument(
        "--model",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="values that override the config's `model` section: --model code_embedding=bits tied_embeddings=false",
    )
    add_push_arguments(parser, "the best model of the run when it has ended")
    parser.add_argument("--json", action="store_true", help="print the final report as JSON")
    overrides = parser.add_argument_group("settings that override the config's `train` section")
    kinds = {"int": int, "float": float, "str": str}
    for setting in dataclasses.fields(TrainSettings):
        flag, text = f"--{setting.name.replace('_', '-')}", setting.metadata["help"]
        if str(setting.type).startswith("bool"):
            overrides.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            kind, choices = kinds[str(setting.type)], setting.metadata["choices"] or None
            shown = None if choices else kind.__name__.upper()
            overrides.add_argument(
                flag, type=kind, default=argparse.SUPPRESS, metavar=shown, choices=choices, help=text
            )


def run(args: argparse.Namespace) -> int:
    """Train. Returns 0 at the end of the run, 128 + the signal's number if a signal stopped it."""
    from slm.training.preferences.training import train_on_preferences
    from slm.training.train import train
    from tokenizer import Codec
    from tokenizer.runs.ranks import join_ranks
    from tokenizer.runs.weights_and_biases import check_wandb

    check_source(args)
    check_push(args)
    names = {setting.name for setting in dataclasses.fields(TrainSettings)}
    overrides = {name: value for name, value in vars(args).items() if name in names}
    model, settings = read_settings(args.config, overrides, values_of_pairs(args.model, "--model", "heads=4"))
    with join_ranks(args.device) as (ranks, device):
        with ranks.together():
            check_device(device)
            check_wandb(args.wandb)
            codec = None if args.codec is None else Codec.from_pretrained(args.codec, device=device)
        if args.preferences is not None:
            told = train_on_preferences(
                model,
                settings,
                args.preferences,
                args.init_from,
                args.out,
                args.resume,
                device,
                ranks=ranks,
                resume_from=args.resume_from,
                wandb=args.wandb,
            )
            return say_preferences(told, args) if not ranks.rank else status_of(told.stopped_by)
        report = train(
            model,
            settings,
            args.data,
            args.out,
            args.held_out,
            args.resume,
            device,
            cache=args.cache,
            init_from=args.init_from,
            ranks=ranks,
            codec=codec,
            text_model=args.text_model,
            related_codec=args.related_codec,
            resume_from=args.resume_from,
            wandb=args.wandb,
        )
    status = status_of(report.stopped_by)
    if ranks.rank:
        return status
    publish(report, args)
    if args.json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        adapted = f", {report.trained_parameters:,} in adapters" if settings.lora else ""
        print(f"{report.parameters / 1e6:.2f} M parameters{adapted}, {report.training_tokens:,} tokens an epoch")
        print(f"stopped by {report.stopped_by} after step {report.step} ({report.epochs:.2f} epochs)")
        if report.skipped:
            print(f"{report.skipped} batches were skipped; log.jsonl has their steps")
        if report.best_bits_per_token is not None:
            seconds = report.best_bits_per_second
            means = "mean of the tasks by weight" if seconds is None else f"{seconds:.1f} bits per second of speech"
            print(f"best at step {report.best_step}: {report.best_bits_per_token:.3f} bits per held-out token, {means}")
        if report.stopped_by in SIGNALS:
            print("resume with the same command and --resume")
        if not settings.speech_weight:
            print(f"use it with `focalstream speak` or `focalstream transcribe`, and --lm {args.out}")
        elif report.codec_streams:
            print(f"use it with `focalstream continue PROMPT.wav OUT.wav --lm {args.out}`")
        else:
            print(
                "`focalstream continue` needs a codec that streams, and this one does not: use slm.generation.generate "
                "in Python"
            )
    return status


def publish(report: TrainReport | PreferenceReport, args: argparse.Namespace) -> None:
    """Upload the best model of a run that came to its end, if asked to."""
    if args.push is None:
        return
    if report.stopped_by in SIGNALS:
        print(f"not uploaded to {args.push}, as the run is not over", file=sys.stderr)
        return
    from slm.publishing import push_run

    print(push_run(args.out, report, args.push, args.private, args.dry_run, args.license), file=sys.stderr)


def status_of(stopped_by: str) -> int:
    """The exit status of a run."""
    return 128 + signal.Signals[stopped_by] if stopped_by in SIGNALS else 0


def check_source(args: argparse.Namespace) -> None:
    """Raise InputError unless there is either --data or --preferences with what it needs."""
    if (args.preferences is None) == (not args.data):
        raise InputError("train-lm: expected either --data DATASET ... or --preferences PAIRS.jsonl")
    if args.preferences is None:
        return
    if args.init_from is None:
        raise InputError("--preferences: name the model to start from, which is also the reference, with --init-from")
    useless = {
        "--held-out": args.held_out,
        "--cache": args.cache,
        "--text-model": args.text_model,
        "--related-codec": args.related_codec,
        "--codec": args.codec,
    }
    if odd := next((option for option, given in useless.items() if given), None):
        raise InputError(f"{odd} is of no use with --preferences; leave it out")


def say_preferences(report: PreferenceReport, args: argparse.Namespace) -> int:
    """Print how a run on preferences ended. Returns the exit status."""
    publish(report, args)
    if args.json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
        return status_of(report.stopped_by)
    print(f"{report.parameters / 1e6:.2f} M parameters, {report.preferences:,} preferences an epoch")
    print(f"stopped by {report.stopped_by} after step {report.step} ({report.epochs:.2f} epochs)")
    if report.best_loss is not None:
        print(f"best at step {report.best_step}: {report.best_loss:.3f} nats a held-out pair (0.693 before training)")
    print(f"use it with `focalstream continue PROMPT.wav OUT.wav --lm {args.out}`")
    return status_of(report.stopped_by)
