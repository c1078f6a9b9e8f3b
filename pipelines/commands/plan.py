"""`focalstream plan`: what tokenizing a corpus will take, before anything is spent."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from pipelines.bulk.encoding import Encoding
from pipelines.bulk.estimate import Estimate, estimate, measured_rate
from pipelines.commands.corpus_options import (
    add_selection_arguments,
    add_sharding_arguments,
    default_shard_hours,
    read_selection,
    read_sharding,
)
from pipelines.sources.manifests import find_inputs
from pipelines.storage.stable_bytes import bytes_text
from tokenizer.commands.codec_options import CODEC_HELP
from tokenizer.errors import InputError, counted
from tokenizer.machine import check_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_selection_arguments(parser)
    parser.add_argument("--codec", default="small", help=CODEC_HELP)
    add_sharding_arguments(parser)
    parser.add_argument(
        "--rate",
        type=float,
        metavar="X",
        help="seconds of audio that one device does in a second; when not given, measured here on the first minute of "
        "the input, in one process",
    )
    parser.add_argument("--device", default="cpu", help='where to measure: "cpu" (one core), "cuda", "cuda:1"')
    parser.add_argument(
        "--batch-seconds", type=float, default=Encoding.batch_seconds, metavar="S", help="as for tokenizing"
    )
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="how many devices will work")
    parser.add_argument("--cost-per-hour", type=float, default=0.0, metavar="C", help="of one device, in any currency")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    from tokenizer import Codec

    for name, value, least in (("rate", args.rate, 0), ("devices", args.devices, 1)):
        if value is not None and not (value >= least and value > 0):
            raise InputError(f"--{name} is {value}, expected a positive number")
    if not args.cost_per_hour >= 0:
        raise InputError(f"--cost-per-hour is {args.cost_per_hour}, expected 0 or more")
    check_device(args.device)
    codec = Codec.from_pretrained(args.codec, device=args.device)
    inputs, selection = find_inputs(args.source), read_selection(args)
    found = estimate(inputs, selection, read_sharding(args, default_shard_hours(args.source)), codec)
    if not found.cuts:
        raise InputError(f"{args.source}: no cuts in it that take part; expected at least one")
    rate = args.rate or measured_rate(inputs, selection, Encoding(args.batch_seconds, args.device), codec)
    device_hours = found.hours / rate
    work = {
        "times_real_time": round(rate, 2),
        "device_hours": round(device_hours, 4),
        "elapsed_hours": round(device_hours / min(args.devices, found.shards), 4),
        "cost": round(device_hours * args.cost_per_hour, 2),
    }
    if args.json:
        json.dump({**asdict(found), "total_bytes": found.total_bytes, **work}, sys.stdout)
        print()
    else:
        print("\n".join(_lines(found, work, args)))
    return 0


def _lines(found: Estimate, work: dict[str, Any], args: argparse.Namespace) -> list[str]:
    left_out = [f"{found.skipped:,} more are skipped"] if found.skipped else []
    left_out += [f"{found.unusable:,} say no duration and will fail"] if found.unusable else []
    audio = f"{counted(found.cuts, 'cut')}, {found.hours:,.2f} h" + "".join(f"; {part}" for part in left_out)
    hour = max(found.hours, 1e-9)
    packed = f", packed {bytes_text(found.packed_bytes)}" if found.packed_bytes else ""
    workers = min(args.devices, found.shards)
    lines = [
        f"audio   {audio}",
        f"tokens  {found.tokens:,} in {counted(found.shards, 'shard')}",
        f"disk    {bytes_text(found.total_bytes)}: codes {bytes_text(found.tar_bytes)}, cuts about "
        f"{bytes_text(found.cuts_bytes)}, indexes {bytes_text(found.index_bytes)}{packed}; "
        f"{bytes_text(found.total_bytes / hour)} an hour, ideal {bytes_text(found.ideal_bytes / hour)}",
        f"work    {work['device_hours']:,.2f} device-hours at {work['times_real_time']:,g} x real time; "
        f"{work['elapsed_hours']:,.2f} h on {counted(workers, 'device')}",
    ]
    if args.devices > found.shards:
        lines.append(f"        {args.devices - found.shards:,} devices have no shard; make smaller shards to use them")
    return lines + ([f"cost    {work['cost']:,.2f}"] if args.cost_per_hour else [])
