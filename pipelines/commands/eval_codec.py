"""`focalstream eval-codec`: a codec's quality on held-out speech, with upper and lower bounds and other codecs."""

from __future__ import annotations

import argparse

from pipelines.evaluation.outputs import add_output_arguments, check_outputs, write_outputs
from tokenizer.commands.codec_options import add_codec_arguments, load_codec
from tokenizer.errors import InputError

PAGE_CLIPS = 2  # clips of each source that the page lets one hear


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_codec_arguments(parser)
    parser.add_argument("--manifest", required=True, help="Lhotse manifest or folder of held-out speech")
    parser.add_argument("--min-seconds", type=float, default=3.0, help="skip shorter clips")
    parser.add_argument("--per-source", type=int, default=0, help="first N clips of each source; 0: all of them")
    parser.add_argument("--peers", action="store_true", help="also Codec2 and Opus, where their programs are installed")
    parser.add_argument(
        "--content", action="store_true", help="also word errors, by a small English recogniser (pocketsphinx; slow)"
    )
    parser.add_argument(
        "--models", action="store_true", help="also UTMOS, Whisper and WavLM speaker similarity; may download models"
    )
    parser.add_argument(
        "--judges",
        action="store_true",
        help="also DNSMOS, speaker similarity and the word errors of --recogniser; their weights come in packages",
    )
    parser.add_argument(
        "--recogniser",
        default="tiny.en",
        metavar="MODEL",
        help="Whisper on CTranslate2, for --judges: tiny.en, a folder, or a name that is downloaded (base)",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads for encoding and decoding")
    parser.add_argument("--workers", type=int, default=2, help="processes that measure quality")
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    import torch

    from pipelines.evaluation.codec_page import render
    from pipelines.evaluation.codec_table import table
    from pipelines.evaluation.evaluate import Options, evaluate

    for option in ("threads", "workers"):
        if getattr(args, option) < 1:
            raise InputError(f"--{option} is {getattr(args, option)}, expected at least 1")
    if args.per_source < 0:
        raise InputError(f"--per-source is {args.per_source}, expected 0 (all clips) or more")
    check_outputs(args)
    torch.set_num_threads(args.threads)
    options = Options(
        manifest=args.manifest,
        min_seconds=args.min_seconds,
        per_source=args.per_source,
        peers=args.peers,
        content=args.content,
        models=args.models,
        judges=args.judges,
        recogniser=args.recogniser,
        workers=args.workers,
        device=args.device,
        page_clips=PAGE_CLIPS if args.html else 0,
    )
    result, sounds = evaluate(load_codec(args), options)
    write_outputs(args, result, table(result), lambda: render(result, sounds))
    return 0
