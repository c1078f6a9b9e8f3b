"""`focalstream train-codec`: a codec from manifests or folders of speech, in stages."""

from __future__ import annotations

import argparse
import dataclasses
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizer.commands.old_options import Renamed, note
from tokenizer.errors import InputError
from tokenizer.machine import check_device
from tokenizer.parsed import values_of_pairs
from tokenizer.training.config import OPTIMIZERS, SCHEDULES, StageConfig

if TYPE_CHECKING:
    from tokenizer.training.config import TrainingConfig
    from tokenizer.training.corpus import Corpus

# What each setting of a stage is, for --help; `tokenizer.training.config.StageConfig` says more.
SETTINGS = {
    "steps": "optimizer steps; in place of the config's steps or epochs",
    "epochs": "times through the corpus; in place of the config's steps or epochs",
    "batch_size": "rows of a batch, of one process",
    "crop_seconds": "length of the random crops; none: whole utterances",
    "longest_seconds": "of a whole utterance at most, which is cut there",
    "optimizer": "AdamW for all parameters, or Muon for the matrices between layers",
    "learning_rate": "highest learning rate, reached after the warm-up",
    "final_learning_rate": "learning rate that the schedule comes down to",
    "schedule": "how the learning rate falls: a half cosine, by a factor at each plateau, or by a factor an epoch",
    "annealing": "factor of each fall at a plateau or an epoch",
    "warmup_steps": "steps over which the learning rate rises linearly",
    "beta1": "AdamW: decay of the gradient's mean",
    "beta2": "AdamW: decay of the gradient's square",
    "weight_decay": "decay of matrices",
    "clip_norm": "gradients are scaled down to this norm",
    "average": "decay a step of the weights' moving average, which is validated and saved; 0: no average",
    "entropy_temperature": "sharpness of the assignments whose entropy is a loss",
    "binarise": "quantize the latents; without, they pass as they are, to learn what quantizing costs",
    "adversary_width": "channels of the discriminators, relative to the published ones",
    "adversary_learning_rate": "of the discriminators; none: the codec's",
    "bfloat16": "compute in bfloat16 where it is safe; weights stay in float32 (auto, in a config: where hardware can)",
    "validate_every": "steps between validations on held-out speech; none: once an epoch",
    "validation_batches": "batches of a validation: always the same ones",
    "save_every": "steps between checkpoints",
    "seed": "of the weights and of the batches",
    "losses": "weights of single losses: --losses multi_mel=2 loudness=0",
    "augment": "changes of random crops: --augment speed=0.1 level=6 (speed, level, bandwidth, room, noise, noise_db)",
    "freeze": "parts of the codec that stay as they are: --freeze encoder decompressor.refiner",
}
CHOICES = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; each setting of a stage has one that overrides the config's."""
    parser.add_argument(
        "--config",
        required=True,
        default=argparse.SUPPRESS,
        type=Path,
        metavar="FILE",
        help="YAML file with 'model', 'stages' and, for distillation, 'teacher'",
    )
    parser.add_argument(
        *("--data", "--train"),
        action=Renamed,
        required=True,
        default=argparse.SUPPRESS,
        nargs="+",
        metavar="SPEECH",
        help="Lhotse manifests or folders of audio to train on",
    )
    parser.add_argument(
        "--held-out",
        nargs="+",
        action="extend",
        metavar="SPEECH",
        help="manifests or folders for the validation loss",
    )
    parser.add_argument(
        "--out", required=True, default=argparse.SUPPRESS, type=Path, metavar="DIR", help="folder of the run"
    )
    parser.add_argument("--stage", help="only this stage of the configuration; without it, all in their order")
    parser.add_argument(
        *("--init-from", "--init"),
        action=Renamed,
        metavar="CODEC",
        help="codec whose weights the first stage starts from; without it, random ones",
    )
    parser.add_argument("--resume", action="store_true", help="resume from the latest checkpoint in --out")
    parser.add_argument(
        "--device", default="cpu", help="torch device, for example cuda (under torchrun: one a process)"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches ahead; 0: none")
    parser.add_argument(
        "--model",
        nargs="+",
        action="extend",
        metavar="KEY=VALUE",
        help="values that override the config's `model` section: --model encoder_config.num_layers=4",
    )
    parser.add_argument(
        "--teacher",
        nargs="+",
        action="extend",
        metavar="KEY=VALUE",
        help="likewise of its `teacher` section: --teacher source=microsoft/wavlm-large layers=6",
    )
    overrides = parser.add_argument_group("settings that override the config's `stages`: those of --stage, or of all")
    for setting in dataclasses.fields(StageConfig):
        add_setting(overrides, setting.name, str(setting.type))


def add_setting(group: argparse._ArgumentGroup, name: str, kind: str) -> None:
    """The option of one setting of a stage, whose annotation is `kind`; it is absent where it is not given."""
    flag = f"--{name.replace('_', '-')}"
    shared: dict[str, Any] = {"default": argparse.SUPPRESS, "help": SETTINGS.get(name, name.replace("_", " "))}
    if kind.startswith("bool"):
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **shared)
    elif kind.startswith("dict") or kind == "Augmentation":
        group.add_argument(flag, nargs="+", action="extend", metavar="NAME=VALUE", **shared)
    elif kind.startswith("tuple"):
        group.add_argument(flag, nargs="*", action="extend", metavar="PART", **shared)
    elif choices := CHOICES.get(name):
        group.add_argument(flag, choices=choices, **shared)
    else:
        number = {"int": int, "float": float, "str": str}[kind.removesuffix(" | None")]
        reader = _or_none(number) if kind.endswith("None") else number
        group.add_argument(flag, type=reader, metavar=number.__name__.upper(), **shared)


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        return None if text.lower() == "none" else kind(text)

    read.__name__ = f"{kind.__name__} or none"  # what argparse calls it in its errors
    return read


def run(args: argparse.Namespace) -> int:
    """Train; 0 when the run came to its end, 128 + the signal's number when a signal stopped it."""
    import torch

    from tokenizer import Codec
    from tokenizer.runs.ranks import join_ranks
    from tokenizer.training.train import check_trainable, train

    if args.threads < 0 or args.workers < 0:
        raise InputError(f"--threads {args.threads} and --workers {args.workers}: expected 0 or more")
    config = configuration(args)
    check_trainable(config)
    if args.threads:
        torch.set_num_threads(args.threads)
    initial = None if args.init_from is None else Codec.from_pretrained(args.init_from)
    rate = config.model.sample_rate_out
    with join_ranks(args.device) as (ranks, device):
        with ranks.together():
            check_device(device)
        check_resume(args, config, first=not ranks.rank)
        with ranks.first():
            training = corpus(args.data, args.out / "corpus" / "train", rate)
            held_out = corpus(args.held_out, args.out / "corpus" / "held_out", rate) if args.held_out else None
        codec, stopped_by = train(
            config, training, held_out, args.out, args.stage, initial, device, args.workers, ranks
        )
    if stopped_by:
        if not ranks.rank:
            print(f"stopped by {stopped_by}; resume with the same command and --resume")
        return 128 + signal.Signals[stopped_by]
    if not ranks.rank:
        last = args.stage or list(config.stages)[-1]
        print(f"codec {codec.fingerprint[:12]} in {args.out / last / 'codec'}")
    return 0


def configuration(args: argparse.Namespace) -> TrainingConfig:
    """The config, with the options that override it. Raises InputError."""
    from tokenizer.training.recipe import read_config

    if not args.config.is_file():
        raise InputError(f"{args.config}: no such configuration; expected a file such as configs/codec/small.yaml")
    names = {setting.name for setting in dataclasses.fields(StageConfig)}
    settings = {name: value for name, value in vars(args).items() if name in names}
    for name, example in (("losses", "multi_mel=2"), ("augment", "speed=0.1")):
        if name in settings:
            settings[name] = values_of_pairs(settings[name], f"--{name}", example)
    return read_config(
        args.config,
        settings,
        args.stage,
        values_of_pairs(args.model or [], "--model", "encoder_config.num_layers=4"),
        values_of_pairs(args.teacher or [], "--teacher", "layers=6"),
    )


def check_resume(args: argparse.Namespace, config: TrainingConfig, first: bool) -> None:
    """Raise InputError where there is nothing to resume. A run that exists is resumed
    without --resume too, with a note.

    Args:
        first: whether this process prints the note.
    """
    from tokenizer.training.train import has_begun

    begun = has_begun(config, args.out, args.stage)
    if args.resume and not begun:
        raise InputError(f"{args.out}: holds no training run; start without --resume")
    if begun and not args.resume and first:
        note(f"{args.out} holds a training run, which is resumed; the next release will need --resume for that")


def corpus(sources: list[str], directory: Path, sample_rate: int) -> Corpus:
    """The audio of manifests or folders as one memory map; see `tokenizer.training.corpus.decode_corpus`."""
    from pipelines.sources.manifests import content_digest, find_inputs
    from tokenizer.training.corpus import decode_corpus

    inputs = [found for source in sources for found in find_inputs(source)]
    identity = f"{content_digest(inputs)} {sample_rate}"
    return decode_corpus(spoken(inputs, sample_rate), identity, directory, ", ".join(sources))


def spoken(inputs: list[str], sample_rate: int) -> Iterator[tuple[np.ndarray, str]]:
    """float32 [S] and the text of every cut. Raises InputError naming the first cut that cannot be read."""
    from pipelines.sources.audio import read_wave
    from pipelines.sources.manifests import read_cuts

    for source in read_cuts(inputs):
        texts = [supervision.get("text") or "" for supervision in source.cut.get("supervisions") or []]
        yield read_wave(source, sample_rate), " ".join(texts).strip()
