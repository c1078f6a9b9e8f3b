"""`focalstream convert IN OUT --reference DIR`: speech in another speaker's voice, from a file or live."""

from __future__ import annotations

import argparse
import json
import sys
import time

from tokenizer.commands.codec_options import CODEC_HELP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input",
        metavar="IN.wav",
        help='audio file of any rate and number of channels; "-": raw 16-bit mono PCM on standard input, converted as '
        "it comes",
    )
    parser.add_argument(
        "output",
        metavar="OUT.wav",
        help='16-bit WAV or FLAC at the codec\'s output rate; "-": raw 16-bit mono PCM on standard output (the report '
        "goes to standard error)",
    )
    parser.add_argument(
        "--reference",
        required=True,
        metavar="DIR",
        help="folder of recordings of the voice to convert to, or one such file; a minute or more of clean speech is "
        "best, ten minutes are used at most",
    )
    parser.add_argument("--codec", default="small", help=CODEC_HELP)
    parser.add_argument("--stream", action="store_true", help="go chunk by chunk, as a live stream does")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu", help='"cpu" or "cuda"')
    parser.add_argument("--json", action="store_true", help="report one JSON object")


def run(args: argparse.Namespace) -> int:
    import torch

    from tokenizer import Codec
    from tokenizer.audio import audio_format, check_output, read_audio, write_audio
    from tokenizer.conversion import Voice, convert, convert_live
    from tokenizer.errors import InputError
    from tokenizer.live import read_pcm, to_pcm

    if args.threads < 1:
        raise InputError(f"--threads {args.threads}: expected at least 1")
    check_output(args.output, args.input, args.reference)
    audio_format(args.output)  # before any work
    torch.set_num_threads(args.threads)
    codec = Codec.from_pretrained(args.codec, args.device)
    voice = Voice.from_path(codec, args.reference)
    began = time.perf_counter()
    if args.input == "-":
        pieces = convert_live(codec, voice, read_pcm(sys.stdin.buffer, codec.chunk_samples))
    else:
        wave = torch.from_numpy(read_audio(args.input, codec.sample_rate_in))
        codec.check_length(len(wave), args.input)
        pieces = convert_live(codec, voice, [wave]) if args.stream else iter([convert(codec, voice, wave)])
    samples, kept = 0, []
    for piece in pieces:
        samples += len(piece)
        if args.output == "-":
            sys.stdout.buffer.write(to_pcm(piece.cpu().numpy()))
            sys.stdout.buffer.flush()
        else:
            kept.append(piece.cpu())
    elapsed = time.perf_counter() - began
    if args.output != "-":
        write_audio(args.output, torch.cat(kept).numpy(), codec.sample_rate_out)
    result = {
        "codec": codec.name,
        "seconds": samples / codec.sample_rate_out,
        "reference_seconds": voice.seconds,
        "real_time_factor": None if args.input == "-" else samples / codec.sample_rate_out / elapsed,
        "streamed": args.stream or args.input == "-",
        "threads": args.threads,
    }
    report = sys.stderr if args.output == "-" else sys.stdout
    if args.json:
        print(json.dumps(result), file=report)
        return 0
    print(f"{args.output}: {result['seconds']:.2f} s in the voice of {voice.seconds:.2f} s of reference", file=report)
    if args.input != "-":
        print(f"{result['real_time_factor']:.1f} x real time on {args.threads} thread(s)", file=report)
    return 0
