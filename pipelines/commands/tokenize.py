"""`focalstream tokenize`: a manifest or a folder of audio to token shards."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from pipelines.bulk.batch_size import batch_sharing, default_batch_seconds
from pipelines.bulk.encoding import Encoding
from pipelines.bulk.executors.base import Executor
from pipelines.bulk.executors.inline import Inline
from pipelines.bulk.executors.local import Local, check_workers
from pipelines.bulk.executors.ray import Ray
from pipelines.bulk.executors.slurm import ArrayTask, read_part
from pipelines.bulk.feed.device import PRECISIONS
from pipelines.bulk.run import Job, Result, tokenize
from pipelines.commands.corpus_options import (
    HOURS,
    add_selection_arguments,
    add_sharding_arguments,
    default_shard_hours,
    read_selection,
    read_sharding,
)
from pipelines.format.layout import Layout
from pipelines.storage.folders import dataset_folder
from tokenizer.commands.codec_options import CODEC_HELP
from tokenizer.commands.old_options import note
from tokenizer.errors import InputError, counted

log = logging.getLogger(__name__)

EXECUTORS: dict[str | None, Callable[[argparse.Namespace], Executor]] = {
    "inline": lambda args: Inline(),
    "local": lambda args: Local(args.workers, devices=several(args.device)),
    "ray": lambda args: Ray(args.workers, args.ray_address, args.gpus_per_worker),
    None: lambda args: Local(args.workers, inline_if_one=True, devices=several(args.device)),
}


def several(text: str) -> tuple[str, ...]:
    """The devices of `--device` where there is more than one."""
    devices = read_devices(text)
    return tuple(devices) if len(devices) > 1 else ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_selection_arguments(parser)
    parser.add_argument(
        "out",
        metavar="OUT",
        type=dataset_folder,
        help="folder of the dataset, or a URL (s3://, gs://, ...). The same command again continues a run that was "
        "interrupted",
    )
    parser.add_argument("--codec", default="small", help=CODEC_HELP)
    add_sharding_arguments(parser)
    parser.add_argument(
        "--executor",
        choices=("inline", "local", "ray"),
        help="where the work runs: inline in this process; local in worker processes of this machine, so that the run "
        "survives cuts that crash them; ray on a Ray cluster, which may also lose machines. When not given, local "
        "where there are several workers and shards, or where the run was interrupted before",
    )
    parser.add_argument("--engine", choices=("inline", "local", "ray"), help="the old name of --executor")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="worker processes; when not given, one per CPU core, or one with another --device; with Ray as many as "
        "the cluster has room for",
    )
    parser.add_argument(
        "--part",
        metavar="I/N",
        help="do part I of N of the shards, on a file system (or at a URL) that all parts share; slurm: take I and N "
        "from the Slurm job array. The part that ends last finishes the dataset",
    )
    parser.add_argument(
        "--ray-address",
        metavar="A",
        help="head of the Ray cluster; when not given, $RAY_ADDRESS or one of this machine",
    )
    parser.add_argument(
        "--gpus-per-worker",
        type=float,
        default=Ray.gpus_per_worker,
        metavar="G",
        help="GPUs of a Ray worker with --device cuda; a fraction lets workers share one",
    )
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="D",
        help='where the codec runs: "cpu", "cuda", "cuda:1"; "cuda:0,cuda:1" are several GPUs of this machine, each '
        "with a worker",
    )
    parser.add_argument(
        "--decoders",
        type=int,
        metavar="N",
        help="processes of each worker that read and decode audio, and write shards; 0: threads of the worker. When "
        "not given, none on a CPU; on a GPU the cores that are left, at most 16; with Ray 4, each of which is one CPU "
        "more that a worker asks for. Changes no byte",
    )
    parser.add_argument(
        "--readers",
        type=int,
        metavar="N",
        help="threads of each worker that read audio, in place of decoders: for slow network disks and far stores. "
        "When not given, 2; for audio behind URLs 16, and up to 64 while they mostly wait. Changes no byte",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="on a GPU: tf32 or bf16 are faster and give slightly different tokens; stored with the dataset",
    )
    parser.add_argument(
        "--batch-seconds",
        type=float,
        metavar="S",
        help="seconds of audio encoded at once, padding included; bounds memory. When not given, "
        f"{Encoding.batch_seconds:g} on a CPU, on a GPU as much as fits in half of its free memory (a run "
        "continues with what it began with)",
    )
    parser.add_argument(
        "--batch-shards",
        type=int,
        metavar="N",
        help="shards, one after another, whose cuts share batches, so that less is padding. When not given, 1 on a "
        "CPU, on a GPU as many as hold 64 batches, at most 64 hours (a run continues with what it began with)",
    )
    parser.add_argument(
        "--max-quarantine-rate",
        type=float,
        default=Job.max_quarantine_rate,
        metavar="R",
        help="stop when more than this share of all cuts cannot be tokenized, from 0 to 1",
    )
    parser.add_argument(
        "--retry-quarantined",
        action="store_true",
        help="when OUT is finished: try again the cuts in quarantine.jsonl, and nothing else",
    )
    parser.add_argument(
        "--plan-only",
        action="store_true",
        help="divide the input into shards, store that in OUT, and end; parts that start then wait for nothing, and "
        "read no manifest. --workers processes read a large manifest side by side",
    )
    parser.add_argument(
        "--log",
        type=Path,
        metavar="FILE",
        help="append a JSON line to FILE, outside of OUT, for each shard that is done; `focalstream report OUT --log "
        "FILE` draws the speed from it",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    executor = read_executor(args)
    device = read_devices(args.device)[0]
    batch_seconds = args.batch_seconds
    if batch_seconds is None:
        if device != "cpu" and (executor.spans_machines or args.plan_only):
            option = "--plan-only" if args.plan_only else "--part" if args.part else "--executor ray"
            raise InputError(
                f"--batch-seconds must be given with {option} and --device {args.device}: it decides the bytes, and "
                "what the memory of a GPU allows differs between machines"
            )
        batch_seconds = default_batch_seconds(Layout(args.out), args.codec, device)
    unsaid = args.shard_hours is None and args.shard_cuts is None
    hours = default_shard_hours(args.source, Layout(args.out)) if unsaid else HOURS
    sharding = read_sharding(args, hours)
    shared = batch_sharing(Layout(args.out), batch_seconds, device, sharding, args.batch_shards)
    if args.precision != "fp32":
        log.warning("--precision %s: some tokens differ from those of float32", args.precision)
    result = tokenize(
        Job(
            source=args.source,
            out=args.out,
            codec=args.codec,
            sharding=sharding,
            selection=read_selection(args),
            encoding=Encoding(batch_seconds, device, precision=args.precision, **shared),
            executor=executor,
            max_quarantine_rate=args.max_quarantine_rate,
            retry_quarantined=args.retry_quarantined,
            plan_only=args.plan_only,
            log=args.log,
            decoders=args.decoders,
            readers=args.readers,
        )
    )
    if args.json:
        json.dump(
            {
                "out": str(result.out),
                "was_complete": result.was_complete,
                "shards_left": result.shards_left,
                **asdict(result.totals),
                "elapsed_seconds": round(result.elapsed, 3),
                "times_real_time": round(result.times_real_time, 2),
            },
            sys.stdout,
        )
        print()
    else:
        print(_planned(result) if args.plan_only and result.shards_left else _sentence(result))
    return 0


def read_devices(text: str) -> list[str]:
    """The devices of `--device`. Raises InputError where they are not of one type."""
    devices = text.split(",")
    if len({device.partition(":")[0] for device in devices}) > 1 or len(set(devices)) < len(devices):
        raise InputError(f'--device is {text}, expected "cpu", "cuda", or different GPUs with commas, "cuda:0,cuda:1"')
    return devices


def read_executor(args: argparse.Namespace) -> Executor:
    """The executor that the options name. Raises InputError for options that make no sense."""
    if args.engine is not None:
        note("--engine is now --executor; the next release drops --engine")
        if args.executor not in (None, args.engine):
            raise InputError(f"--executor is {args.executor} and --engine {args.engine}: give --executor alone")
    check_workers(args.workers)
    if "," in args.device and (args.executor or args.engine) in ("inline", "ray"):
        raise InputError(f"--device is {args.device}: several GPUs need worker processes, --executor local")
    executor = EXECUTORS[args.executor or args.engine](args)
    return ArrayTask(read_part(args.part), executor) if args.part else executor


def _planned(result: Result) -> str:
    return (
        f"{result.out}: planned {counted(result.totals.planned, 'cut')} in {counted(result.shards_left, 'shard')}; the "
        "same command without --plan-only, or with --part, tokenizes them"
    )


def _sentence(result: Result) -> str:
    totals = result.totals
    done = f"{counted(totals.cuts, 'cut')}, {totals.hours:.2f} h, {counted(totals.tokens, 'token')}"
    if result.was_complete:
        return f"{result.out}: already complete ({done}); nothing to do"
    if result.shards_left:
        return (
            f"{result.out}: this part is done in {result.elapsed:.0f} s ({result.times_real_time:.0f}x real time); "
            f"left for other parts, or for the same command without --part: {counted(result.shards_left, 'shard')}"
        )
    failed = f"; {counted(totals.quarantined, 'cut')} failed, see quarantine.jsonl" if totals.quarantined else ""
    speed = f", {result.times_real_time:.0f}x real time" if result.times_real_time else ""
    return f"{result.out}: {done}{failed}. This run took {result.elapsed:.0f} s{speed}"
