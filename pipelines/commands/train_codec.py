"""`focalstream train-codec`: a codec from a manifest or a folder of speech."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tokenizer.config import ENCODER_SAMPLE_RATE
from tokenizer.devices import check_device
from tokenizer.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, type=Path, help="YAML with the sections 'model' and 'train'")
    parser.add_argument("--train", required=True, help="Lhotse manifest or folder of audio to train on")
    parser.add_argument("--held-out", help="manifest or folder for the validation loss")
    parser.add_argument("--init", help="codec whose weights a new run starts from; without it, from random ones")
    parser.add_argument("--out", required=True, type=Path, help="run folder; an unfinished run in it goes on")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores")
    parser.add_argument("--device", default="cpu", help='"cpu" or "cuda"')


def run(args: argparse.Namespace) -> int:
    import torch

    from tokenizer.codec import Codec
    from tokenizer.crops import Crops
    from tokenizer.train_codec import VALIDATION_SEED, read_config, train

    if args.threads < 0:
        raise InputError(f"--threads is {args.threads}, expected a number of CPU threads, or 0 for all cores")
    check_device(args.device)
    if not args.config.is_file():
        raise InputError(f"{args.config}: no such configuration; expected a file such as configs/codec/small.yaml")
    if args.threads:
        torch.set_num_threads(args.threads)
    model, config = read_config(args.config)
    initial = None if args.init is None else Codec.from_pretrained(args.init)
    crop = round(config.crop_seconds * ENCODER_SAMPLE_RATE)
    training = Crops(*corpus(args.train, args.out / "corpus" / "train"), crop, config.seed)
    held_out = None
    if args.held_out:
        held_out = Crops(*corpus(args.held_out, args.out / "corpus" / "held_out"), crop, VALIDATION_SEED)
    codec, stopped_by = train(model, config, training, held_out, args.out, args.device, initial)
    if stopped_by:
        print(f"stopped by {stopped_by}; the same command goes on")
        return 128 + signal.Signals[stopped_by]
    print(f"codec {codec.fingerprint[:12]} in {args.out / 'codec'}")
    return 0


def corpus(source: str, directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """The audio of a manifest or folder as one memory map; see `tokenizer.crops.decode_corpus`."""
    from pipelines.manifests import content_digest, find_inputs
    from tokenizer.crops import decode_corpus

    inputs = find_inputs(source)
    return decode_corpus(waves(inputs), f"{content_digest(inputs)} {ENCODER_SAMPLE_RATE}", directory)


def waves(inputs: list[Path]) -> Iterator[np.ndarray]:
    """float32 [S] of every cut. Raises InputError naming the first cut that cannot be read."""
    from pipelines.audio import read_wave
    from pipelines.manifests import read_cuts
    from pipelines.plan import PlannedCut

    for source in read_cuts(inputs):
        yield read_wave(PlannedCut(source.cut, "", source.audio), ENCODER_SAMPLE_RATE)
