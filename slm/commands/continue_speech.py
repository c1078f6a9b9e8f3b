"""`focalstream continue PROMPT.wav OUT.wav`: continue a spoken prompt with a language model."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slm.commands.lm_options import (
    LM_HELP,
    add_lm_engine_arguments,
    add_sampling_arguments,
    add_silence_limit,
    check_lm_engine,
    check_seed,
    sampling_of,
)
from tokenizer.commands.codec_options import add_codec_arguments, load_codec

if TYPE_CHECKING:
    from slm.generation.audio_sinks import AudioSink
    from slm.generation.continuation import Continuation, Timing
    from slm.vocabulary import Vocabulary
    from tokenizer import Codec

PIPE, MICROPHONE, SPEAKER = "-", "mic", "speaker"  # names in place of a file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prompt",
        metavar="PROMPT.wav",
        help='sound file of any rate and number of channels; "-": raw 16-bit mono PCM at the codec\'s input rate on '
        'standard input; "mic": the microphone, for --prompt-seconds',
    )
    parser.add_argument(
        "output",
        metavar="OUT.wav",
        help='16-bit WAV with the decoded prompt, then the continuation; "-": raw 16-bit mono PCM at '
        "the codec's output rate on standard output while it is generated (the report goes to standard error); "
        '"speaker": the loudspeaker',
    )
    add_codec_arguments(parser)
    parser.set_defaults(engine=None)
    parser.add_argument("--lm", default="small", help=LM_HELP)
    add_lm_engine_arguments(parser, "torch")
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help="let a server draw the codes: an OpenAI-compatible API, such as http://localhost:8000/v1 of vLLM, that "
        "runs the folder `export-lm` made of --lm; of --lm only the vocabulary is read here. A key is taken from "
        "OPENAI_API_KEY",
    )
    parser.add_argument(
        "--endpoint-model", metavar="NAME", help="the server's name of the model (default: the only one that it lists)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=6.0,
        help="longest continuation, rounded up to whole chunks; with --stream, inf: until the model ends it, or Ctrl-C",
    )
    parser.add_argument(
        "--min-seconds", type=float, default=2.0, help="shortest continuation; the model may not end it earlier"
    )
    parser.add_argument(
        "--prompt-seconds", type=float, default=3.0, help="length of PROMPT that is used, from its start"
    )
    parser.add_argument("--only-continuation", action="store_true", help="write the continuation without the prompt")
    parser.add_argument("--stream", action="store_true", help="write audio while it is generated, chunk by chunk")
    parser.add_argument("--seed", type=int, default=0, help="random seed: the same seed gives the same continuation")
    add_sampling_arguments(parser)
    add_silence_limit(parser)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Continue the prompt and report the speed."""
    from slm.generation.continuation import Continuation, warm_up
    from tokenizer.audio import check_output

    check_request(args)
    if args.prompt not in (MICROPHONE, PIPE):
        check_output(args.output, args.prompt)
    sampling = sampling_of(args)
    codec, model, vocabulary = load_models(args)
    vocabulary.check(f"codec '{codec.name}'", codec.fingerprint, codec.codebook_size)
    warm_up(codec, model, vocabulary)
    prompt = read_prompt(args, codec.sample_rate_in)
    continuation = Continuation(
        codec,
        model,
        vocabulary,
        prompt,
        sampling,
        args.seed,
        min(args.min_seconds, args.seconds),
        None if math.isinf(args.seconds) else args.seconds,
        match_level=True,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: a streamed file is completed
    underruns = write(args, codec, continuation)
    report(args, codec, continuation.timing(), underruns)
    return 0


def load_models(args: argparse.Namespace) -> tuple[Any, Any, Vocabulary]:
    """Codec, language model and vocabulary on the engines asked for. Raises InputError."""
    if args.endpoint is not None:
        from slm.checkpoint import locate
        from slm.generation.endpoint import Endpoint
        from slm.vocabulary import Vocabulary

        endpoint = Endpoint(args.endpoint, args.endpoint_model)
        return load_codec(args), endpoint, Vocabulary.load(locate(args.lm) / "vocabulary.json")
    if args.lm_engine == "onnx":
        from slm.onnx_engine.folders import load_arrays

        return load_arrays(args.codec, args.precision, args.lm, args.lm_precision, args.threads)
    import torch

    from slm.checkpoint import load_lm

    torch.set_num_threads(args.threads)
    codec = load_codec(args)
    return (codec, *load_lm(args.lm, args.device))


def read_prompt(args: argparse.Namespace, sample_rate: int) -> np.ndarray:
    """The prompt, float32 [S], cut to --prompt-seconds. Raises InputError."""
    from slm.generation.audio_sinks import record
    from tokenizer.audio import read_audio
    from tokenizer.live import read_pcm

    length = round(args.prompt_seconds * sample_rate)
    if args.prompt == MICROPHONE:
        print(f"speak: {args.prompt_seconds:g} s", file=sys.stderr)
        return record(args.prompt_seconds, sample_rate)
    if args.prompt == PIPE:
        pieces = itertools.islice(read_pcm(sys.stdin.buffer, sample_rate), math.ceil(args.prompt_seconds))
        return np.concatenate([np.asarray(piece) for piece in pieces])[:length]
    return read_audio(args.prompt, sample_rate)[:length]


def check_request(args: argparse.Namespace) -> None:
    """Raise InputError for bad durations or outputs before the work starts."""
    from slm.generation.audio_sinks import WavSink, sound_devices
    from tokenizer.errors import InputError

    if args.endpoint is None and args.endpoint_model is not None:
        raise InputError("--endpoint-model: names a model of a server; give its URL as --endpoint")
    if args.endpoint is not None and (args.lm_engine is not None or math.isinf(args.seconds)):
        raise InputError(
            "--endpoint: the server computes the language model, to a finite length; leave out "
            "--lm-engine and --seconds inf"
        )
    args.lm_engine = args.lm_engine or "torch"
    args.engine = args.engine or args.lm_engine

    if not args.seconds > 0 or not 0 <= args.min_seconds < math.inf or not 0 < args.prompt_seconds < math.inf:
        raise InputError(
            f"--seconds {args.seconds}, --min-seconds {args.min_seconds}, --prompt-seconds {args.prompt_seconds}: "
            "expected more than 0, at least 0, and more than 0; only --seconds may be inf"
        )
    if math.isinf(args.seconds) and not args.stream and args.output not in (PIPE, SPEAKER):
        raise InputError("--seconds inf: an endless continuation is never complete; add --stream")
    if args.threads < 1:
        raise InputError(f"--threads {args.threads}: expected at least 1")
    check_seed(args.seed)
    if args.output not in (PIPE, SPEAKER):
        WavSink.check(Path(args.output))
    for given, name in ((args.prompt, MICROPHONE), (args.output, SPEAKER)):
        if given == name:
            sound_devices(name)
    check_lm_engine(args, args.engine, args.lm_engine)


def write(args: argparse.Namespace, codec: Codec, continuation: Continuation) -> int | None:
    """Write the audio, live or when it is complete. Returns the underruns of a loudspeaker, else None."""
    from slm.generation.audio_sinks import PipeSink, SpeakerSink, WavSink

    live = args.stream or args.output in (PIPE, SPEAKER)
    chunks = continuation.chunks() if live else list(continuation.chunks())
    target: AbstractContextManager[AudioSink]
    if args.output == PIPE:
        target = nullcontext(PipeSink(sys.stdout.buffer))
    elif args.output == SPEAKER:
        target = SpeakerSink(codec.sample_rate_out)
    else:
        target = WavSink(Path(args.output), codec.sample_rate_out)
    with target as sink:
        if not args.only_continuation:
            sink.write(continuation.prompt_audio)
        for chunk in chunks:
            sink.write(chunk.audio)
    return sink.underruns if isinstance(sink, SpeakerSink) else None


def report(args: argparse.Namespace, codec: Codec, timing: Timing, underruns: int | None) -> None:
    """Print the result and the speed; on standard error if the audio goes to standard output."""
    out = sys.stderr if args.output == "-" else sys.stdout
    if args.json:
        print(
            json.dumps({"output": args.output, **dataclasses.asdict(timing), "underruns": underruns}, indent=2),
            file=out,
        )
        return
    ended = " (the model ended it)" if timing.new_seconds < args.seconds else ""
    print(
        f"{args.output}: {timing.prompt_seconds:.2f} s of prompt, {timing.new_seconds:.2f} s of continuation{ended}",
        file=out,
    )
    if timing.real_time_factor is None:
        return
    print(
        f"first audio {timing.first_audio_ms:.0f} ms after the prompt's end (encode {timing.encode_ms:.0f}, prime "
        f"decoder {timing.prime_ms:.0f}, prefill {timing.prefill_ms:.0f})\n"
        f"chunks of {codec.latency_ms:g} ms in {timing.chunk_ms_p50:.1f} ms (median; p95 {timing.chunk_ms_p95:.1f}, "
        f"p99 {timing.chunk_ms_p99:.1f}): real-time factor {timing.real_time_factor:.3f}"
        + ("" if underruns is None else f"; {underruns} underruns of the loudspeaker"),
        file=out,
    )
