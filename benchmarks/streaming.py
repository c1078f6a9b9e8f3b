"""Streaming speed: encode_step and decode_step of 80 ms chunks, PyTorch beside ONNX Runtime, in one run.

    python benchmarks/streaming.py                                              # the shipped small codec, one thread
    python benchmarks/streaming.py --config full_causal_config.json --threads 2 # random weights of any configuration

Prints a Markdown table: times of one chunk (encoding and decoding together), how many times real time the median is,
resident memory after the last chunk (of the whole process, and above what it held before the codec was loaded), and
the limit beside it: the bytes of the weights over the rate at which the same threads read memory, measured in the same
run. Each engine runs in a process of its own, the engines in turn, several times; figures are medians over the runs.
"numpy" is the ONNX engine on arrays, in a process without PyTorch. With --compile there is a row for PyTorch compiled,
in a pool of one stream; its memory is that of the compiler too.

With --beside CHECKOUT each row is also measured with the code and the exports of another checkout of this project, in
the same turns, and the ratio of the two is printed.
"""

from __future__ import annotations

import argparse
import json
import os
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
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
Row = tuple[str, str]  # engine and precision
WARM_UP = 10  # chunks
READ_BYTES = 2**28  # far more than any cache holds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="small", help="shipped name, directory or Hub id")
    parser.add_argument("--config", type=Path, help="a codec's config.json: random weights of that size instead")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--chunks", type=int, default=200, help="of each run")
    parser.add_argument("--runs", type=int, default=3, help="the medians over N runs are printed")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another version, measured in the same turns")
    parser.add_argument("--compile", action="store_true", help="PyTorch compiled, too")
    parser.add_argument("--worker", nargs=2, metavar=("ENGINE", "PRECISION"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args.codec, *args.worker, chunks=args.chunks, threads=args.threads)))
        return

    import torch

    from tokenizer import Codec, CodecConfig
    from tokenizer.machine import processor

    torch.set_num_threads(args.threads)
    rows = (*ROWS, COMPILED) if args.compile else ROWS
    here = Path(__file__).resolve().parents[1]
    checkouts = [here] if args.beside is None else [here, args.beside.resolve()]
    with tempfile.TemporaryDirectory() as folder:
        name = args.codec
        if args.config:
            name = f"{folder}/torch"
            torch.manual_seed(0)
            Codec.from_config(CodecConfig.from_file(args.config)).save_pretrained(name)
        common = ["--threads", str(args.threads), "--chunks", str(args.chunks)]
        runs: dict[tuple[Path, Row], list[dict[str, float]]] = {}
        places = {checkout: exported(checkout, name, Path(folder) / str(n)) for n, checkout in enumerate(checkouts)}
        for _ in range(args.runs):
            for row in rows:
                for checkout in checkouts:
                    script = ["benchmarks/streaming.py", "--codec", places[checkout].get(row, name), "--worker", *row]
                    figures = json.loads(run(checkout, [*script, *common]).splitlines()[-1])
                    runs.setdefault((checkout, row), []).append(figures | {"read_rate": read_rate()})
    found = processor()
    print(f"{args.config or args.codec}, {args.threads} thread(s), batch 1")
    print(f"{found.name}: {' '.join(found.instructions)}")
    if limits := [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]:
        print(f"held to fewer instructions: {' '.join(limits)}")
    columns = ("code", "engine", "precision", "p50 ms", "p95 ms", "p99 ms", "x real time")
    print(f"\n| {' | '.join(columns)} | MB in all | MB of the codec | limit ms |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        for checkout in checkouts:
            figures = medians(runs[checkout, row])
            limit = 1000 * figures["weights"] / figures["read_rate"]
            times = " | ".join(f"{figures[key]:.2f}" for key in ("p50", "p95", "p99"))
            print(
                f"| {'this' if checkout == here else 'other'} | {row[0]} | {row[1]} | {times} | "
                f"{figures['chunk_ms'] / figures['p50']:.2f} | {figures['memory'] / 1e6:.0f} | "
                f"{figures['codec_memory'] / 1e6:.0f} | {limit:.2f} |"
            )
    for row in rows if args.beside else ():
        this, other = (medians(runs[checkout, row])["p50"] for checkout in checkouts)
        print(f"{' '.join(row)}: {other / this:.2f} times as fast as the other version")


def exported(checkout: Path, name: str, folder: Path) -> dict[Row, str]:
    """The codec `name` exported by a checkout's own code, by row."""
    places: dict[Row, str] = {}
    for engine, precision in ROWS:
        if engine == "onnx":
            places[engine, precision] = str(folder / precision)
            run(checkout, ["-m", "slm.cli", "export", name, places[engine, precision], "--precision", precision])
    return places | {("numpy", "int8"): places["onnx", "int8"]}


def run(checkout: Path, arguments: list[str]) -> str:
    """What a Python process with a checkout's code prints."""
    path = os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, cwd=checkout, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(figures[key] for figures in runs) for key in runs[0]}


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
