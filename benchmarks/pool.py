"""Live streams in a pool beside as many codecs stepped one by one, and what a step of some of a pool's streams costs.

    python benchmarks/pool.py [--codec small] [--engine onnx] [--precision int8] [--threads 1] [--steps 100]

First table: N streams encode and decode one chunk each, in a pool of N and each with a state of its own, in turn in one
run. Streams are held in real time when the 99th percentile of their steps is shorter than a chunk.

With --compile the pool of the first table is a compiled one (`StreamPool(..., compiled=True)`).

Second table, PyTorch only: a pool of 32 of which k streams, spread over it, have a chunk: gathering their rows, as
`StreamPool` does, beside stepping all 32 rows and keeping the new state of k of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenizer import Codec
from tokenizer.commands.codec_options import add_codec_arguments, load_codec
from tokenizer.stream_pool import StreamPool

SIZES = (1, 2, 4, 8, 16, 32)
WARM_UP = 3  # steps of each that are not counted


def pooled(codec: Codec, size: int, slots: list[int], compiled: bool = False) -> Callable[[Tensor], None]:
    """A step of `slots` of a full pool."""
    pool = StreamPool(codec, size, compiled)
    while len(pool.active) < size:
        pool.join()

    def step(chunks: Tensor) -> None:
        pool.decode(pool.encode(dict(zip(slots, chunks, strict=True))))

    return step


def one_by_one(codec: Codec, streams: int) -> Callable[[Tensor], None]:
    """A step of each stream by itself."""
    states = [codec.init_state(1) for _ in range(streams)]

    def step(chunks: Tensor) -> None:
        for stream, chunk in enumerate(chunks):
            tokens, states[stream] = codec.encode_step(chunk[None], states[stream])
            _, states[stream] = codec.decode_step(tokens, states[stream])

    return step


def masked(codec: Codec, size: int, slots: list[int]) -> Callable[[Tensor], None]:
    """A step of all rows, of which those of `slots` keep their new state."""
    kept = torch.zeros(size, dtype=torch.bool)
    kept[slots] = True
    state = codec.init_state(size)

    def step(chunks: Tensor) -> None:
        nonlocal state
        every = torch.zeros(size, codec.chunk_samples)
        every[slots] = chunks
        tokens, new = codec.encode_step(every, state)
        _, new = codec.decode_step(tokens, new)
        state = chosen(kept, new, state)

    return step


def chosen(kept: Tensor, new: Any, old: Any) -> Any:
    """Rows of `new` where `kept`, else of `old`, for a whole tree of states."""
    if isinstance(new, Tensor):
        return torch.where(kept.view(-1, *[1] * (new.ndim - 1)), new, old)
    children = [chosen(kept, a, b) for a, b in zip(new, old, strict=True)]
    return type(new)(*children) if hasattr(new, "_fields") else tuple(children)


def timed(ways: list[Callable[[Tensor], None]], streams: int, samples: int, steps: int) -> list[np.ndarray]:
    """Milliseconds of each step of each way, taken in turn, so that a slow spell of the machine meets them alike."""
    generator = torch.Generator().manual_seed(0)
    times = np.zeros((len(ways), steps))
    for count in range(-WARM_UP, steps):
        chunks = 0.1 * torch.randn(streams, samples, generator=generator)
        for way, step in enumerate(ways):
            began = time.perf_counter()
            step(chunks)
            times[way, max(count, 0)] = 1000 * (time.perf_counter() - began)
    return list(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_codec_arguments(parser)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="the pool's steps compiled; PyTorch only")
    parser.add_argument("--steps", type=int, default=100, help="steps of each row of a table")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    codec = load_codec(args)
    real_time = codec.latency_ms
    print(
        f"{codec.name}, {args.engine} {args.precision}, {args.threads} thread(s), {args.steps} steps, a chunk lasts "
        f"{real_time:g} ms; milliseconds"
    )
    print("| streams | pool p50 | p95 | p99 | held in real time | x real time | one by one p50 | p95 | p99 | held |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for size in SIZES:
        ways = [pooled(codec, size, list(range(size)), args.compile), one_by_one(codec, size)]
        cells = []
        for times in timed(ways, size, codec.chunk_samples, args.steps):
            p50, p95, p99 = np.percentile(times, [50, 95, 99])
            cells.append([f"{p50:.1f}", f"{p95:.1f}", f"{p99:.1f}", "yes" if p99 < real_time else "no"])
            if len(cells) == 1:
                cells[0].append(f"{size * real_time / p50:.1f}")
        print(f"| {size} | {' | '.join(cells[0])} | {' | '.join(cells[1])} |", flush=True)
    if args.engine != "torch":
        return
    size = SIZES[-1]
    print(f"\n| of {size} streams have a chunk | rows gathered p50 | all stepped, others masked p50 |\n|---|---|---|")
    for count in SIZES:
        slots = [i * size // count for i in range(count)]
        ways = [pooled(codec, size, slots), masked(codec, size, slots)]
        gathered, all_stepped = (np.median(t) for t in timed(ways, count, codec.chunk_samples, args.steps))
        print(f"| {count} | {gathered:.1f} | {all_stepped:.1f} |", flush=True)


if __name__ == "__main__":
    main()
