"""Bulk encoding on a GPU, as `tokenize` gives it batches: audio-hours an hour by batch and precision, in one run.

    python -m benchmarks.bulk_gpu --device cuda      # under 40 s; needs no corpus

Noise with the loudness of speech lies in pinned memory, in rows of 15 s. Batches go through the code that `tokenize`
uses, `pipelines.bulk.feed.device`: the next one is copied while one is computed. "Windows" are rows of long recordings,
10 s at a time with carried state. Memory is the peak beyond the weights, per second of audio in the batch. At the end:
the tokens of one batch by precision against those of float32 on the CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator

import numpy as np
import torch

from pipelines.bulk.feed.device import PRECISIONS, Device, Tokens, products_in
from tokenizer import Codec

ROW_SECONDS, WINDOW_SECONDS = 15.0, 10.0
MEASURE_SECONDS = 0.6  # of each figure, about
LIMIT_SECONDS = 36.0  # figures that would begin later are left out
COMPARED_ROWS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--codec", default="small", help="shipped name, directory or Hub id")
    parser.add_argument("--batches", default="30,120,600,1800,3840", help="seconds of audio, with commas")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    args = parser.parse_args()
    began = time.perf_counter()
    batches, precisions = [float(batch) for batch in args.batches.split(",")], args.precisions.split(",")
    torch.set_num_threads(4)
    reference = Codec.from_pretrained(args.codec)
    noise = pinned_noise(max(batches), reference.sample_rate_in, args.device)
    compared = noise[: round(COMPARED_ROWS * ROW_SECONDS * reference.sample_rate_in)].reshape(COMPARED_ROWS, -1)
    lengths = np.full(COMPARED_ROWS, compared.shape[1])
    wanted = Device(reference, "cpu").encode(compared, lengths).result()
    differing = {}
    print(f"{args.codec}, {device_name(args.device)}, torch {torch.__version__}\n")
    print("| precision | batch, s | hours an hour | windows, hours an hour | MB a second of audio |")
    print("|---|---|---|---|---|")
    for precision in precisions:
        codec = Codec.from_pretrained(
            args.codec, device=args.device, precision="bf16" if precision == "bf16" else "fp32"
        )
        device = Device(codec, args.device)
        with products_in(precision):
            differing[precision] = float(np.mean(device.encode(compared, lengths).result() != wanted))
            for batch in batches:
                if time.perf_counter() - began > LIMIT_SECONDS:
                    print(f"| {precision} | {batch:g} | left out: the time is up | | |", flush=True)
                    continue
                try:
                    with measured_memory(args.device) as peak:
                        whole = rate_of(whole_batches(device, noise, batch, codec.sample_rate_in))
                    windows = rate_of(window_batches(device, noise, batch, codec.sample_rate_in))
                except torch.cuda.OutOfMemoryError:
                    print(f"| {precision} | {batch:g} | no memory | | |", flush=True)
                    continue
                print(
                    f"| {precision} | {batch:g} | {whole:,.0f} | {windows:,.0f} | {peak[0] / batch / 1e6:.2f} |",
                    flush=True,
                )
    print(f"\nTokens of {compared.shape[0]} rows of {ROW_SECONDS:g} s that differ from float32 on the CPU:")
    for precision, share in differing.items():
        print(f"    {precision}: {share:.4%} of {wanted.size}")
    print(f"\n{time.perf_counter() - began:.0f} s in all")


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def pinned_noise(seconds: float, rate: int, device: str) -> np.ndarray:
    """float32 [S] for the largest batch: noise whose loudness wanders, ten times a second."""
    rng = np.random.default_rng(0)
    short = rng.standard_normal(round(61 * rate), dtype=np.float32)  # repeated, at another loudness
    samples = round(max(seconds, COMPARED_ROWS * ROW_SECONDS) * rate)
    steps = -(-samples // (rate // 10))
    loudness = np.repeat(rng.uniform(0.003, 0.15, steps).astype(np.float32), rate // 10)[:samples]
    held = torch.empty(samples, pin_memory=device.startswith("cuda")).numpy()
    np.multiply(np.resize(short, samples), loudness, out=held)
    return held


def whole_batches(device: Device, noise: np.ndarray, seconds: float, rate: int) -> Iterator[tuple[float, Tokens]]:
    """Seconds of audio, and their tokens to come, without end."""
    rows, width = max(1, int(seconds / ROW_SECONDS)), round(ROW_SECONDS * rate)
    wave, lengths = noise[: rows * width].reshape(rows, width), np.full(rows, width)
    while True:
        yield rows * ROW_SECONDS, device.encode(wave, lengths)


def window_batches(device: Device, noise: np.ndarray, seconds: float, rate: int) -> Iterator[tuple[float, Tokens]]:
    rows, width = max(1, int(seconds / WINDOW_SECONDS)), round(WINDOW_SECONDS * rate)
    width -= width % device.codec.chunk_samples
    wave, state = noise[: rows * width].reshape(rows, width), device.codec.init_state(rows)
    while True:
        tokens, state = device.encode_step(wave, state)
        yield rows * width / rate, tokens


def rate_of(batches: Iterator[tuple[float, Tokens]]) -> float:
    """Seconds of audio a second: the tokens of a batch are fetched when the next one has been queued."""
    for _ in range(2):  # the first calls choose kernels and allocate
        next(batches)[1].result()
    began, done, waiting = time.perf_counter(), 0.0, next(batches)
    while True:
        following = next(batches)
        waiting[1].result()
        done, waiting = done + waiting[0], following
        if time.perf_counter() - began > MEASURE_SECONDS:
            waiting[1].result()
            return (done + waiting[0]) / (time.perf_counter() - began)


@contextlib.contextmanager
def measured_memory(device: str) -> Iterator[list[float]]:
    """A list whose one entry becomes the peak of memory in bytes, beyond what was allocated before."""
    peak = [0.0]
    if not device.startswith("cuda"):
        yield peak
        return
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    yield peak
    peak[0] = torch.cuda.max_memory_allocated(device) - before


if __name__ == "__main__":
    main()
