"""Bulk encoding: audio in, tokens out, whole clips in batches; every engine and precision side by side in one run.

    python benchmarks/bulk.py                                            # the shipped small codec on the CPU
    python benchmarks/bulk.py --config full_causal_config.json           # random weights of any configuration
    python benchmarks/bulk.py --config F --device cuda --batches 1,4,16,64,256

Prints a Markdown table: how many times real time (which is also audio-hours per hour), the median of several runs, and
the share of the matrix rate: floating point operations of the pass, as PyTorch counts them, over those of a large
matrix product of the same type, measured in the same run. On a GPU the rows are PyTorch in float32 and bfloat16.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from tokenizer import Codec, CodecConfig

CPU_ROWS = (("torch", "fp32"), ("torch", "bf16"), ("onnx", "fp32"), ("onnx", "int8"))
GPU_ROWS = (("torch", "fp32"), ("torch", "bf16"))
MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="small", help="shipped name, directory or Hub id")
    parser.add_argument("--config", type=Path, help="a codec's config.json: random weights of that size instead")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each clip")
    parser.add_argument("--batches", default="1,8", help="clips encoded at once, with commas")
    parser.add_argument("--runs", type=int, default=5, help="the median of N runs is printed")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    batches = [int(batch) for batch in args.batches.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        name = args.codec
        if args.config:
            name = folder
            torch.manual_seed(0)
            Codec.from_config(CodecConfig.from_file(args.config)).save_pretrained(folder)
        machine = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.processor()} CPU"
        print(f"{args.config or args.codec}, {args.seconds:g} s clips, {machine}, {args.threads} threads\n")
        print("| engine | precision | batch | x real time | share of the matrix rate |\n|---|---|---|---|---|")
        operations = count_operations(Codec.from_pretrained(name), args.seconds)
        for engine, precision in GPU_ROWS if args.device == "cuda" else CPU_ROWS:
            codec = Codec.from_pretrained(name, device=args.device, engine=engine, precision=precision)
            rate = matrix_rate(args.device, precision)
            for batch in batches:
                wave = 0.1 * torch.randn(batch, round(args.seconds * codec.sample_rate_in))
                seconds = median_time(lambda wave=wave, codec=codec: codec.encode(wave), args.device, args.runs)
                share = "" if rate is None else f"{operations * batch / seconds / rate:.0%}"
                print(
                    f"| {engine} | {precision} | {batch} | {batch * args.seconds / seconds:.1f} | {share} |", flush=True
                )


def count_operations(codec: Codec, seconds: float) -> float:
    """Floating point operations of encoding one clip, products and convolutions, an addition and a product each one."""
    with FlopCounterMode(display=False) as counter:
        codec.encode(0.1 * torch.randn(1, round(seconds * codec.sample_rate_in)))
    return float(counter.get_total_flops())


def matrix_rate(device: str, precision: str) -> float | None:
    """Operations per second of a large matrix product; None for int8, whose products PyTorch has no public form of."""
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if precision not in kinds:
        return None
    size = MATRIX_SIZE[device]
    matrix = torch.randn(size, size, device=device, dtype=kinds[precision])
    return 2 * size**3 / median_time(lambda: matrix @ matrix, device, 5)


def median_time(work: Callable[[], object], device: str, runs: int) -> float:
    """Seconds of one call, the median of `runs` after one that is not counted."""
    times = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
