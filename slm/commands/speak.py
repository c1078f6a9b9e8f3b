"""`focalstream speak TEXT OUT.wav --lm LM`: text to speech."""

from __future__ import annotations

import argparse

from slm.commands.lm_options import add_sampling_arguments, check_seed, sampling_of
from tokenizer.commands.codec_options import add_codec_arguments, load_codec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", metavar="TEXT", help="what to say, in quotes")
    parser.add_argument("output", metavar="OUT.wav", help="16-bit WAV or FLAC file to write")
    add_codec_arguments(parser)
    parser.add_argument(
        "--lm",
        required=True,
        default=argparse.SUPPRESS,
        help="checkpoint folder or training run of a model trained with text",
    )
    parser.add_argument(
        "--seconds", type=float, help="longest speech; default: until the model ends it or its context is full"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed: the same seed gives the same speech")
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the speech and report its length."""
    import math

    import torch

    from slm.checkpoint import load_lm
    from slm.generation.spoken_text import speak
    from tokenizer.audio import audio_format, write_audio
    from tokenizer.errors import InputError

    if args.seconds is not None and not 0 < args.seconds < math.inf:
        raise InputError(f"--seconds {args.seconds}: expected more than 0, and finite")
    check_seed(args.seed)
    audio_format(args.output)  # refuses other formats before the work
    model, vocabulary = load_lm(args.lm, args.device)
    text_model = vocabulary.check_text(args.lm)
    codec = load_codec(args)
    vocabulary.check(f"codec '{codec.name}'", codec.fingerprint, codec.codebook_size)
    most = None if args.seconds is None else max(1, round(args.seconds * codec.token_rate))
    sampling = sampling_of(args)
    codes = speak(model, vocabulary, text_model, args.text, sampling, args.seed, most)
    wave = codec.decode(torch.from_numpy(codes)[None])[0].float().cpu().numpy()
    write_audio(args.output, wave, codec.sample_rate_out)
    print(f"{args.output}: {len(codes) / codec.token_rate:.2f} s of speech")
    return 0
