"""`focalstream decode IN OUT`: a token file to an audio file, or a live pipe to a live pipe."""

from __future__ import annotations

import argparse
import sys

from tokenizer.commands.codec_options import CODEC_HELP, add_codec_arguments, load_codec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", metavar="IN.npy", help='NumPy file of integers [T]; "-": raw little-endian uint16 on standard input'
    )
    parser.add_argument(
        "output", metavar="OUT.wav", help='16-bit WAV or FLAC; "-": raw 16-bit mono PCM on standard output'
    )
    add_codec_arguments(parser, f"{CODEC_HELP}; the one that encoded")


def run(args: argparse.Namespace) -> int:
    import io

    import numpy as np
    import torch

    from tokenizer.audio import audio_format, check_output, write_audio
    from tokenizer.live import decode_pipe, to_pcm

    check_output(args.output, args.input)
    audio_format(args.output)  # before any work
    codec = load_codec(args)
    if args.input == "-":
        collected = io.BytesIO()
        decode_pipe(codec, sys.stdin.buffer, sys.stdout.buffer if args.output == "-" else collected)
        if args.output == "-":
            return 0
        wave = np.frombuffer(collected.getvalue(), dtype="<i2").astype(np.float32) / 32767
    else:
        tokens = read_tokens(args.input, codec.codebook_size)
        wave = codec.decode(torch.from_numpy(tokens))[0].cpu().numpy()
        if args.output == "-":
            sys.stdout.buffer.write(to_pcm(wave))
            return 0
    write_audio(args.output, wave, codec.sample_rate_out)
    print(f"{args.output}: {len(wave) / codec.sample_rate_out:.2f} s at {codec.sample_rate_out} Hz")
    return 0


def read_tokens(path: str, codebook_size: int):
    """int64 [T] from a `.npy` file. Raises InputError unless it holds one dimension of codes below `codebook_size`."""
    import tokenize
    import zipfile

    import numpy as np

    from tokenizer.errors import InputError

    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)  # a header may announce more than there is
    except (ValueError, EOFError, SyntaxError, OverflowError, tokenize.TokenError, zipfile.BadZipFile):
        raise InputError(f"{path}: not a NumPy file of numbers; make one with `focalstream encode`") from None
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        found = f"{tokens.dtype} {tokens.shape}" if isinstance(tokens, np.ndarray) else "an archive"
        raise InputError(f"{path}: holds {found}; expected integers [T], as written by `focalstream encode`")
    if not len(tokens):
        raise InputError(f"{path}: holds no tokens")
    if tokens.min() < 0 or tokens.max() >= codebook_size:
        raise InputError(
            f"{path}: tokens range from {tokens.min()} to {tokens.max()}; this codec knows 0 to {codebook_size - 1}. "
            "Were they made by another codec? Give it as --codec"
        )
    return tokens.astype(np.int64)
