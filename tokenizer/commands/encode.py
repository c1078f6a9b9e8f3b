"""`focalstream encode IN OUT`: an audio file to a token file, or a live pipe to a live pipe."""

from __future__ import annotations

import argparse
import sys

from tokenizer.commands.codec_options import add_codec_arguments, load_codec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN.wav", help='audio file; "-": raw 16-bit mono PCM on standard input')
    parser.add_argument(
        "output", metavar="OUT.npy", help='NumPy file, uint16 [T]; "-": raw little-endian uint16 on standard output'
    )
    add_codec_arguments(parser)


def run(args: argparse.Namespace) -> int:
    import io

    import numpy as np
    import torch

    from tokenizer.audio import check_output, read_audio
    from tokenizer.errors import counted
    from tokenizer.files import write_atomically
    from tokenizer.live import encode_pipe

    check_output(args.output, args.input)
    codec = load_codec(args)
    if args.input == "-":
        collected = io.BytesIO()
        encode_pipe(codec, sys.stdin.buffer, sys.stdout.buffer if args.output == "-" else collected)
        if args.output == "-":
            return 0
        tokens = np.frombuffer(collected.getvalue(), dtype="<u2")
    else:
        wave = read_audio(args.input, codec.sample_rate_in)
        codec.check_length(len(wave), args.input)
        tokens = codec.encode(torch.from_numpy(wave))[0].cpu().numpy().astype("<u2")
        if args.output == "-":
            sys.stdout.buffer.write(tokens.tobytes())
            return 0
    file = io.BytesIO()
    np.save(file, tokens)
    write_atomically(args.output, file.getvalue())
    seconds = len(tokens) / codec.token_rate
    print(f"{args.output}: {counted(len(tokens), 'token')}, {seconds:.2f} s at {codec.bitrate:g} bit/s")
    return 0
