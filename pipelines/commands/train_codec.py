"""`focalstream train-codec`: a codec from a manifest or a folder of speech."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenizer.errors import InputError

if TYPE_CHECKING:
    from pipelines.plan import PlannedCut


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, type=Path, help="YAML with the sections 'model' and 'train'")
    parser.add_argument("--train", required=True, help="Lhotse manifest or folder of audio to train on")
    parser.add_argument("--held-out", help="manifest or folder for the validation loss")
    parser.add_argument("--out", required=True, type=Path, help="run folder; an unfinished run in it goes on")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores")
    parser.add_argument("--device", default="cpu", help='"cpu" or "cuda"')


def run(args: argparse.Namespace) -> int:
    import torch

    from tokenizer.crops import Crops
    from tokenizer.train_codec import VALIDATION_SEED, read_config, train

    if not args.config.is_file():
        raise InputError(f"{args.config}: no such configuration; expected a file such as configs/codec/small.yaml")
    if args.threads:
        torch.set_num_threads(args.threads)
    model, config = read_config(args.config)
    crop = round(config.crop_seconds * SAMPLE_RATE)
    training = Crops(*corpus(args.train, args.out / "corpus" / "train"), crop, config.seed)
    held_out = None
    if args.held_out:
        held_out = Crops(*corpus(args.held_out, args.out / "corpus" / "held_out"), crop, VALIDATION_SEED)
    codec, stopped_by = train(model, config, training, held_out, args.out, args.device)
    if stopped_by:
        print(f"stopped by {stopped_by}; the same command goes on")
        return 128 + signal.Signals[stopped_by]
    print(f"codec {codec.fingerprint[:12]} in {args.out / 'codec'}")
    return 0


SAMPLE_RATE = 16000  # Hz; codecs are trained at the rate the encoder hears


def corpus(source: str, directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """The audio of a manifest or folder as one memory map; see `tokenizer.crops.decode_corpus`."""
    from pipelines.manifests import content_digest, find_inputs
    from tokenizer.crops import decode_corpus

    inputs = find_inputs(source)
    return decode_corpus(waves(inputs), f"{content_digest(inputs)} {SAMPLE_RATE}", directory)


def waves(inputs: list[Path]) -> Iterator[np.ndarray]:
    """float32 [S] of every cut. Raises InputError naming the first cut that cannot be read."""
    from pipelines.manifests import read_cuts
    from pipelines.plan import PlannedCut

    for source in read_cuts(inputs):
        yield read_wave(PlannedCut(source.cut, "", source.audio), SAMPLE_RATE)


def read_wave(cut: PlannedCut, sample_rate: int) -> np.ndarray:
    """float32 [S] of one cut at `sample_rate` Hz. Raises InputError where a bulk run would quarantine it."""
    from pipelines.audio import CutError, expected_samples, read_resampled

    try:
        samples = expected_samples(cut.cut, cut.seconds, sample_rate)
        return np.concatenate(list(read_resampled(cut, samples, sample_rate)))
    except CutError as error:
        raise InputError(f"cut {cut.id}: {error.reason} ({error}); remove it from the manifest") from None
