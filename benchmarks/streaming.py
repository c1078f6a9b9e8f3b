"""Streaming speed: encode_step and decode_step of 80 ms chunks, PyTorch beside ONNX Runtime, in one run.

    python benchmarks/streaming.py                                              # the shipped small codec, one thread
    python benchmarks/streaming.py --config full_causal_config.json --threads 2 # random weights of any configuration

Prints a Markdown table: times of one chunk (encoding and decoding together), how many times real time the median is,
resident memory after the last chunk (of the whole process, and above what it held before the codec was loaded), and
the limit beside it: the bytes of the weights over the rate at which the same threads read memory, measured in the same
run. Each engine runs in a process of its own, the engines in turn, several times; figures are medians over the runs.
"numpy" is the ONNX engine on arrays, in a process without PyTorch. With --compile there is a row for PyTorch compiled,
in a pool of one stream; its memory is that of the compiler too.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROWS = (("torch", "fp32"), ("onnx", "fp32"), ("onnx", "int8"), ("numpy", "int8"))
COMPILED = ("compiled", "fp32")
WARM_UP = 10  # chunks
READ_BYTES = 2**28  # far more than any cache holds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="small", help="shipped name, directory or Hub id")
    parser.add_argument("--config", type=Path, help="a codec's config.json: random weights of that size instead")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--chunks", type=int, default=200, help="of each run")
    parser.add_argument("--runs", type=int, default=3, help="the medians over N runs are printed")
    parser.add_argument("--compile", action="store_true", help="PyTorch compiled, too")
    parser.add_argument("--worker", nargs=2, metavar=("ENGINE", "PRECISION"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args.codec, *args.worker, chunks=args.chunks, threads=args.threads)))
        return

    import torch

    from tokenizer import Codec, CodecConfig

    torch.set_num_threads(args.threads)
    rows = (*ROWS, COMPILED) if args.compile else ROWS
    with tempfile.TemporaryDirectory() as folder:
        name = args.codec
        if args.config:
            name = f"{folder}/torch"
            torch.manual_seed(0)
            Codec.from_config(CodecConfig.from_file(args.config)).save_pretrained(name)
        codecs = {("torch", "fp32"): name, COMPILED: name, ("numpy", "int8"): f"{folder}/int8"}
        for engine, precision in rows:
            if engine == "onnx":
                codecs[engine, precision] = f"{folder}/{precision}"
                export = ["export", name, codecs[engine, precision], "--precision", precision]
                subprocess.run([sys.executable, "-m", "slm.cli", *export], check=True, stdout=subprocess.DEVNULL)
        common = ["--threads", str(args.threads), "--chunks", str(args.chunks)]
        runs: dict[tuple[str, str], list[dict[str, float]]] = {row: [] for row in rows}
        for _ in range(args.runs):
            for row in rows:
                command = [sys.executable, __file__, "--codec", codecs[row], "--worker", *row, *common]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs[row].append(json.loads(done.stdout.splitlines()[-1]) | {"read_rate": read_rate()})
        print(f"{args.config or args.codec}, {platform.machine()} CPU, {args.threads} thread(s), batch 1\n")
        print(
            "| engine | precision | p50 ms | p95 ms | p99 ms | x real time | MB in all | MB of the codec | limit ms |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for row in rows:
            figures = {key: statistics.median(run[key] for run in runs[row]) for key in runs[row][0]}
            limit = 1000 * figures["weights"] / figures["read_rate"]
            times = " | ".join(f"{figures[key]:.2f}" for key in ("p50", "p95", "p99"))
            print(
                f"| {row[0]} | {row[1]} | {times} | {figures['chunk_ms'] / figures['p50']:.2f} | "
                f"{figures['memory'] / 1e6:.0f} | {figures['codec_memory'] / 1e6:.0f} | {limit:.2f} |"
            )


def measure(name: str, engine: str, precision: str, chunks: int, threads: int) -> dict[str, float]:
    """Milliseconds of a chunk at three percentiles, bytes of memory and of weights."""
    before = resident()
    if engine == "numpy":
        from tokenizer.onnx_engine.arrays import ArrayCodec

        codec: Any = ArrayCodec(name, precision, threads)
    else:
        import torch

        from tokenizer import Codec

        torch.set_num_threads(threads)
        before = resident()
        codec = Codec.from_pretrained(name, engine="onnx" if engine == "onnx" else "torch", precision=precision)
    generator = np.random.default_rng(0)
    audio = 0.1 * generator.standard_normal((chunks + WARM_UP, 1, codec.chunk_samples), dtype=np.float32)
    step, times = stepper(codec, engine), []
    for chunk in audio:
        began = time.perf_counter()
        step(chunk)
        times.append(1000 * (time.perf_counter() - began))
    if engine in ("onnx", "numpy"):
        weights = sum(path.stat().st_size for path in Path(name).glob("*.weights"))
    else:
        weights = sum(tensor.numel() * tensor.element_size() for tensor in codec.parameters())
    cuts = statistics.quantiles(times[WARM_UP:], n=100)
    memory = resident()
    figures = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "chunk_ms": codec.latency_ms}
    return figures | {"memory": memory, "codec_memory": memory - before, "weights": weights}


def stepper(codec: Any, engine: str) -> Callable[[np.ndarray], None]:
    """Encodes and decodes a chunk [1, S] of one stream, and keeps its state."""
    if engine == "compiled":
        from tokenizer.stream_pool import StreamPool

        pool = StreamPool(codec, 1, compiled=True)
        slot = pool.join()

        def pooled(chunk: np.ndarray) -> None:
            pool.decode(pool.encode({slot: chunk[0]}))

        return pooled

    state = codec.init_state(1)

    def step(chunk: np.ndarray) -> None:
        nonlocal state
        tokens, state = codec.encode_step(chunk, state)
        _, state = codec.decode_step(tokens, state)

    return step


def read_rate() -> float:
    """Bytes a second that PyTorch's threads read from memory: the best of several sums over an array."""
    import torch

    array = torch.ones(READ_BYTES // 4)
    times = []
    for _ in range(8):
        began = time.perf_counter()
        array.sum()
        times.append(time.perf_counter() - began)
    return READ_BYTES / min(times)


def resident() -> int:
    """Bytes of memory that this process holds (Linux)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


if __name__ == "__main__":
    main()
