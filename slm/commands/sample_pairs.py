"""`focalstream sample-pairs PAIRS.jsonl`: preferences between continuations, for `train-lm --preferences`."""

from __future__ import annotations

import argparse
from pathlib import Path

from slm.commands.lm_options import add_lm_and_data, add_sampling_arguments, sampling_of
from tokenizer.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="PAIRS.jsonl", type=Path, help="file to write")
    add_lm_and_data(parser, "datasets written by `focalstream tokenize`, whose beginnings are the prompts")
    parser.add_argument("--count", type=int, default=256, help="prompts, drawn at random; again if there are fewer")
    parser.add_argument(
        "--prefer",
        default="recording",
        choices=("recording", "words"),
        help="recording: its own continuation over one by the model; words: of two by the model, the one in which "
        "--recogniser is sure of more words a second",
    )
    parser.add_argument("--prompt-seconds", type=float, default=3.0, help="length of a prompt")
    parser.add_argument("--sample-seconds", type=float, default=6.0, help="longest continuation")
    parser.add_argument(
        "--recogniser",
        metavar="MODEL",
        help="with --prefer words: Whisper tiny.en, a folder in CTranslate2's form, or a name",
    )
    parser.add_argument("--codec", help="with --prefer words: the model's codec; default: the one it was trained with")
    add_sampling_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--device", default="cpu", help='"cpu" or "cuda"')
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")


def run(args: argparse.Namespace) -> int:
    import torch

    from slm.checkpoint import load_lm
    from slm.evaluation.evaluate import opened
    from slm.evaluation.preference_pairs import more_words, recorded_over_sampled
    from slm.evaluation.samples import SampleOptions
    from slm.training.preferences.records import write_preferences
    from tokenizer import Codec
    from tokenizer.files import check_place
    from tokenizer.machine import check_device
    from tokenizer.metrics.recogniser import load_word_recogniser

    if (args.prefer == "words") != (args.recogniser is not None):
        raise InputError("--prefer words and --recogniser MODEL go together: give both or neither")
    for option, least in (("threads", 1), ("count", 1), ("seed", 0)):
        if getattr(args, option) < least:
            raise InputError(f"--{option} is {getattr(args, option)}, expected at least {least}")
    check_place(args.output)  # before minutes of work
    check_device(args.device)
    torch.set_num_threads(args.threads)
    model, vocabulary = load_lm(args.lm, args.device)
    dataset = opened(args.data, vocabulary, args.cache)
    options = SampleOptions(args.count, args.prompt_seconds, args.sample_seconds, args.seed, sampling_of(args))
    if args.prefer == "words":
        codec = Codec.from_pretrained(args.codec or vocabulary.codec_name, args.device)
        vocabulary.check(f"codec '{codec.name}'", codec.fingerprint, codec.codebook_size)
        recogniser = load_word_recogniser(args.recogniser)
        found = list(more_words(model, vocabulary, dataset, options, codec, recogniser, show_progress=True))
    else:
        found = list(recorded_over_sampled(model, vocabulary, dataset, options, show_progress=True))
    if not found:
        raise InputError(f"none of {args.count} prompts gave a pair in which one is better; give more with --count")
    write_preferences(args.output, found, vocabulary)
    print(f"{args.output}: {len(found)} preferences of {args.count} prompts")
    print(f"train on them with `focalstream train-lm --preferences {args.output} --init-from {args.lm} ...`")
    return 0
