"""`focalstream eval-lm`: likelihood beside baselines, pair accuracy, transcripts and samples of a language model."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.evaluation.outputs import add_output_arguments, check_outputs, write_outputs
from slm.commands.lm_options import add_lm_and_data, add_sampling_arguments, add_silence_limit, sampling_of
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from slm.evaluation.swaps import SwapOptions

PAGE_CLIPS = 6  # samples with audio on the page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_lm_and_data(parser, "held-out datasets written by `focalstream tokenize`")
    parser.add_argument(
        "--baseline-data",
        nargs="+",
        action="extend",
        default=[],
        metavar="DATASET",
        help="training datasets to count the unigram and bigram baselines on: folders or URLs",
    )
    parser.add_argument("--cuts", type=int, default=0, help="number of held-out cuts to score, drawn at random; 0: all")
    parser.add_argument("--pairs", type=int, default=200, help="pairs of each speaker consistency test; 0: none")
    parser.add_argument(
        "--pair-seconds",
        type=float,
        help="longest prompt and continuation of a pair; default: 3, or half of the model's context",
    )
    parser.add_argument(
        "--min-pair-seconds",
        type=float,
        help="shortest prompt and continuation of a pair; default: 1, or --pair-seconds if that is shorter",
    )
    parser.add_argument(
        "--swap-audio",
        default="",
        metavar="MANIFEST",
        help="the manifest of --data: join audio and encode it, instead of joining codes",
    )
    parser.add_argument(
        "--hold",
        default="",
        metavar="FIELD",
        help='a field of the cuts that a swap must keep, such as "source", so that only the speaker differs',
    )
    parser.add_argument(
        "--transcripts",
        type=int,
        default=32,
        help="held-out cuts that a model with text transcribes, drawn at random; 0: none",
    )
    parser.add_argument("--samples", type=int, default=16, help="number of continuations to sample; 0: none")
    parser.add_argument("--prompt-seconds", type=float, help="prompt of a sample; default: 3, or the model's context")
    parser.add_argument("--sample-seconds", type=float, default=6.0, help="longest sample")
    parser.add_argument(
        "--min-sample-seconds", type=float, default=0.0, help="shortest sample; the model may not end it earlier"
    )
    add_sampling_arguments(parser)
    add_silence_limit(parser)
    parser.add_argument(
        "--recogniser",
        metavar="MODEL",
        help="count the words of the samples: Whisper tiny.en, a folder in CTranslate2's form, or a name",
    )
    parser.add_argument(
        "--genppl",
        metavar="MODEL",
        help="with --recogniser: how likely those words are to a language model of text: a folder or a name on the "
        "Hugging Face Hub, loaded by transformers",
    )
    parser.add_argument(
        "--benchmarks",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="DIR",
        help="folders of sWUGGY, sBLIMP, spoken StoryCloze or SALMon, as published",
    )
    parser.add_argument(
        "--codec",
        help="the model's codec, for benchmarks and audio; default: the codec it was trained with",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--device", default="cpu", help='"cpu" or "cuda"')
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    import torch

    from slm.checkpoint import load_lm
    from slm.evaluation.evaluate import Options, evaluate
    from slm.evaluation.lm_page import render
    from slm.evaluation.lm_table import table
    from slm.evaluation.samples import SampleOptions
    from tokenizer import Codec
    from tokenizer.machine import check_device

    for option, least in (("threads", 1), ("pairs", 0), ("cuts", 0), ("transcripts", 0), ("samples", 0), ("seed", 0)):
        if getattr(args, option) < least:
            raise InputError(f"--{option} is {getattr(args, option)}, expected at least {least}")
    if args.seed >= 2**31:
        raise InputError(f"--seed is {args.seed}, expected less than 2^31")
    if args.genppl is not None and (args.recogniser is None or not args.samples):
        raise InputError("--genppl judges the words of samples: it needs --recogniser MODEL and --samples above 0")
    check_outputs(args)
    check_device(args.device)
    torch.set_num_threads(args.threads)
    model, vocabulary = load_lm(args.lm, args.device)
    try:
        codec = Codec.from_pretrained(args.codec or vocabulary.codec_name, args.device)
        vocabulary.check(f"codec '{codec.name}'", codec.fingerprint, codec.codebook_size)
    except (InputError, OSError):
        if args.codec:
            raise
        codec = None
    seen = model.config.context / vocabulary.token_rate
    prompt_seconds = min(SampleOptions.prompt_seconds, seen) if args.prompt_seconds is None else args.prompt_seconds
    options = Options(
        data=args.data,
        baseline_data=args.baseline_data,
        cache=args.cache,
        cuts=args.cuts,
        swaps=swap_options(args, model.config.context, vocabulary.token_rate),
        swap_audio=args.swap_audio,
        samples=SampleOptions(
            args.samples, prompt_seconds, args.sample_seconds, args.seed, sampling_of(args), args.min_sample_seconds
        )
        if args.samples
        else None,
        recogniser=args.recogniser,
        genppl=args.genppl,
        transcripts=args.transcripts,
        benchmarks=args.benchmarks,
        page_clips=PAGE_CLIPS if args.html else 0,
        seed=args.seed,
        show_progress=True,
    )
    result, sounds = evaluate(args.lm, model, vocabulary, codec, options)
    write_outputs(args, result, table(result), lambda: render(result, sounds))
    return 0


def swap_options(args: argparse.Namespace, context: int, token_rate: float) -> SwapOptions | str:
    """The settings of the pairs, or the reason why there are none. Defaults adapt to the model's context.

    Args:
        args: of the command.
        context: of the model, in tokens.
        token_rate: tokens per second.

    Raises:
        InputError: an option does not fit the model's context or another option.
    """
    from slm.evaluation.swaps import SwapOptions

    if not args.pairs:
        return "ask for them with --pairs"
    for option in ("pair_seconds", "min_pair_seconds"):
        given = getattr(args, option)
        if given is not None and not 1 / token_rate <= given < math.inf:
            name = option.replace("_", "-")
            raise InputError(f"--{name} is {given:g}, expected at least {1 / token_rate:g}, one token; give more")
    longest, least, half = args.pair_seconds, args.min_pair_seconds, context // 2 / token_rate
    if longest is None:
        longest = min(max(SwapOptions.continuation_seconds, least or 0), half)
    if least is None:
        least = min(SwapOptions.min_seconds, args.pair_seconds or math.inf)
        if least > longest:
            return (
                f"the model sees {context / token_rate:.2f} s, a pair needs {2 * least:g} s; allow shorter ones with "
                "--min-pair-seconds"
            )
    if least > longest:
        whose = "half of what the model sees" if args.pair_seconds is None else "--pair-seconds"
        raise InputError(f"--min-pair-seconds is {least:g}, expected at most {longest:g}, {whose}; give less")
    return SwapOptions(args.pairs, longest, longest, least, args.hold, args.seed)
