"""`focalstream train-codec`: a codec from a manifest or a folder of speech, in stages."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenizer.errors import InputError
from tokenizer.machine import check_device

if TYPE_CHECKING:
    from tokenizer.training.corpus import Corpus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, type=Path, help="YAML with 'model', 'stages' and maybe 'teacher'")
    parser.add_argument("--train", required=True, help="Lhotse manifest or folder of audio to train on")
    parser.add_argument("--held-out", help="manifest or folder for the validation loss")
    parser.add_argument("--stage", help="only this stage of the configuration; without it, all in their order")
    parser.add_argument("--init", help="codec whose weights the first stage starts from; without it, random ones")
    parser.add_argument("--out", required=True, type=Path, help="run folder; an unfinished run in it goes on")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches ahead; 0: none")
    parser.add_argument("--device", default="cpu", help='"cpu" or "cuda"')


def run(args: argparse.Namespace) -> int:
    import torch

    from tokenizer import Codec
    from tokenizer.runs.ranks import join_ranks
    from tokenizer.training.recipe import read_config
    from tokenizer.training.train import check_trainable, train

    if args.threads < 0 or args.workers < 0:
        raise InputError(f"--threads {args.threads} and --workers {args.workers}: expected 0 or more")
    check_device(args.device)
    if not args.config.is_file():
        raise InputError(f"{args.config}: no such configuration; expected a file such as configs/codec/small.yaml")
    if args.threads:
        torch.set_num_threads(args.threads)
    config = read_config(args.config)
    check_trainable(config)
    initial = None if args.init is None else Codec.from_pretrained(args.init)
    rate = config.model.sample_rate_out
    with join_ranks(args.device) as (ranks, device):
        with ranks.first():
            training = corpus(args.train, args.out / "corpus" / "train", rate)
            held_out = corpus(args.held_out, args.out / "corpus" / "held_out", rate) if args.held_out else None
        codec, stopped_by = train(
            config, training, held_out, args.out, args.stage, initial, device, args.workers, ranks
        )
    if stopped_by:
        print(f"stopped by {stopped_by}; the same command goes on")
        return 128 + signal.Signals[stopped_by]
    if not ranks.rank:
        last = args.stage or list(config.stages)[-1]
        print(f"codec {codec.fingerprint[:12]} in {args.out / last / 'codec'}")
    return 0


def corpus(source: str, directory: Path, sample_rate: int) -> Corpus:
    """The audio of a manifest or folder as one memory map; see `tokenizer.training.corpus.decode_corpus`."""
    from pipelines.sources.manifests import content_digest, find_inputs
    from tokenizer.training.corpus import decode_corpus

    inputs = find_inputs(source)
    identity = f"{content_digest(inputs)} {sample_rate}"
    return decode_corpus(spoken(inputs, sample_rate), identity, directory, source)


def spoken(inputs: list[str], sample_rate: int) -> Iterator[tuple[np.ndarray, str]]:
    """float32 [S] and the text of every cut. Raises InputError naming the first cut that cannot be read."""
    from pipelines.sources.audio import read_wave
    from pipelines.sources.manifests import read_cuts

    for source in read_cuts(inputs):
        texts = [supervision.get("text") or "" for supervision in source.cut.get("supervisions") or []]
        yield read_wave(source, sample_rate), " ".join(texts).strip()
