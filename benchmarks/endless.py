"""An hour of one live stream: does memory stay flat, and are its tokens those of the offline pass?

    python benchmarks/endless.py [--engine onnx] [--precision int8] [--seconds 3600] [--manifest TEST.jsonl.gz]

Audio goes through `encode_step` and `decode_step` a chunk at a time: the manifest's clips over and over, or generated
sound. Resident memory is read from /proc (Linux). Then the same audio is encoded whole, and the tokens are compared: in
float32 a token may differ where a latent is next to zero (benchmarks/flips.py), so PyTorch's largest such is printed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from pipelines.evaluation.clips import held_out_clips
from tokenizer.commands.codec_options import add_codec_arguments, load_codec

REPORTS = 12  # lines of the table


def generated(sample_rate: int) -> Iterator[np.ndarray]:
    """Seconds of sound without end, float32: a voice-like tone that glides, under noise of moving level."""
    for second in itertools.count():
        rng = np.random.default_rng(second)
        t = np.arange(sample_rate)
        level, pitch = (np.interp(t, np.linspace(0, sample_rate, 6), rng.random(6)) for _ in range(2))
        phase = 2 * np.pi * np.cumsum(80 + 200 * pitch) / sample_rate
        tone = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 12))
        yield ((0.15 * tone + 0.03 * rng.standard_normal(sample_rate)) * level).astype(np.float32)


def looped(args: argparse.Namespace, sample_rate: int) -> Iterator[np.ndarray]:
    """The manifest's clips, over and over."""
    while True:
        yield from (clip.wave for clip in held_out_clips(args.manifest, sample_rate, min_seconds=0))


def chunked(waves: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Waves of any length as chunks of `size` samples."""
    rest = np.zeros(0, np.float32)
    for wave in waves:
        wave = np.concatenate([rest, wave])
        whole = len(wave) // size * size
        yield from wave[:whole].reshape(-1, size)
        rest = wave[whole:]


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_codec_arguments(parser)
    parser.add_argument("--seconds", type=float, default=3600.0, help="of audio")
    parser.add_argument("--manifest", help="Lhotse manifest or folder of speech; left out: generated sound")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    codec = load_codec(args)
    count = int(args.seconds * codec.sample_rate_in / codec.chunk_samples)

    def audio() -> Iterator[np.ndarray]:
        waves = looped(args, codec.sample_rate_in) if args.manifest else generated(codec.sample_rate_in)
        return itertools.islice(chunked(waves, codec.chunk_samples), count)

    streamed = np.full((count, codec.tokens_per_chunk), -1)
    milliseconds = np.full(count, 0.0)
    state = codec.init_state(1)
    print("| audio, s | resident, MiB | step p50, ms | p99, ms |\n|---|---|---|---|")
    for i, chunk in enumerate(audio()):
        began = time.perf_counter()
        tokens, state = codec.encode_step(torch.from_numpy(chunk)[None], state)
        _, state = codec.decode_step(tokens, state)
        milliseconds[i] = 1000 * (time.perf_counter() - began)
        streamed[i] = tokens[0]
        every = -(-count // REPORTS)
        if (i + 1) % every == 0 or i + 1 == count:
            p50, p99 = np.percentile(milliseconds[i // every * every : i + 1], [50, 99])
            seconds = (i + 1) * codec.chunk_samples / codec.sample_rate_in
            print(f"| {seconds:.0f} | {resident_mib():.1f} | {p50:.1f} | {p99:.1f} |", flush=True)
    wave = torch.from_numpy(np.concatenate(list(audio())))
    offline = codec.encode(wave)[0].numpy()
    differ = offline != streamed.ravel()
    print(f"tokens that differ from the offline pass: {differ.sum()} of {len(offline)}")
    if differ.any() and args.engine == "torch":
        latents = codec.latents(codec.features(wave))[0].abs().amin(-1).numpy()
        print(f"largest of their frames' smallest |latent|: {latents[differ].max():.1e}")


if __name__ == "__main__":
    main()
