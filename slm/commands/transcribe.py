"""`focalstream transcribe IN.wav --lm LM`: speech to text."""

from __future__ import annotations

import argparse

from slm.commands.lm_options import check_seed
from tokenizer.commands.codec_options import add_codec_arguments, load_codec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN.wav", help="sound file of any rate and number of channels")
    add_codec_arguments(parser)
    parser.add_argument(
        "--lm",
        required=True,
        default=argparse.SUPPRESS,
        help="checkpoint folder or training run of a model trained with text",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="sampling temperature; 0: always the most likely piece"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed")


def run(args: argparse.Namespace) -> int:
    """Print only the text on standard output."""
    import torch

    from slm.checkpoint import load_lm
    from slm.generation.sampling import Sampling
    from slm.generation.spoken_text import transcribe
    from tokenizer.audio import read_audio
    from tokenizer.errors import printable

    check_seed(args.seed)
    sampling = Sampling(temperature=args.temperature)
    model, vocabulary = load_lm(args.lm, args.device)
    text_model = vocabulary.check_text(args.lm)
    codec = load_codec(args)
    vocabulary.check(f"codec '{codec.name}'", codec.fingerprint, codec.codebook_size)
    wave = read_audio(args.input, codec.sample_rate_in)
    codes = codec.encode(torch.from_numpy(wave)[None])[0].cpu().numpy()
    print(printable(transcribe(model, vocabulary, text_model, codes, sampling, args.seed)))
    return 0
