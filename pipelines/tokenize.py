"""The whole run: plan, shards that are still to do, an engine for them, and the dataset at the end.

`kill -9` it at any moment and call it again: shards with a receipt are kept, the others done, and the final bytes are
those of a run that nothing disturbed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from pipelines.dataset import read_description
from pipelines.encoding import Encoding
from pipelines.finalize import describe_codec, finalize
from pipelines.layout import Layout
from pipelines.manifests import find_inputs
from pipelines.ownership import only_run, refuse_strange_folder
from pipelines.plan import Plan, Sharding, has_plan, identify, load_or_make_plan, make_plan, refuse_difference
from pipelines.progress import ProgressBar
from pipelines.reopen import reopen, shards_with_failures
from pipelines.selection import Selection
from pipelines.shards import Receipt, read_receipt
from pipelines.worker_process import Event, ShardWork, Task
from pipelines.workers import run_inline, run_processes
from tokenizer.devices import check_device
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer.codec import Codec


@dataclass(frozen=True)
class Job:
    """One call of `focalstream tokenize`.

    Attributes:
        source: a manifest, a Shar folder, a folder of audio, or a glob of these; a path or a URL.
        out: the folder of the dataset.
        codec: what `Codec.from_pretrained` takes.
        workers: processes; None: one a CPU core, or one on another device.
        engine: "inline" (in this process) or "local" (worker processes); None: local when that brings parallel work,
            or when the run was interrupted before.
        max_quarantine_rate: stop when more than this share of all planned cuts has failed.
        selection: which cuts and channels of the source take part.
        retry_quarantined: where the dataset is finished, try again what could not be tokenized, and nothing else.
    """

    source: str
    out: Path
    codec: str
    sharding: Sharding = field(default_factory=lambda: Sharding(hours=1.0))
    encoding: Encoding = field(default_factory=Encoding)
    workers: int | None = None
    engine: str | None = None
    max_quarantine_rate: float = 0.5
    selection: Selection = field(default_factory=Selection)
    retry_quarantined: bool = False

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InputError(f"workers is {self.workers}, expected at least 1 (or engine inline for no processes)")
        if not 0 <= self.max_quarantine_rate <= 1:
            raise InputError(f"max_quarantine_rate is {self.max_quarantine_rate}, expected a share from 0 to 1")


@dataclass(frozen=True)
class Result:
    """What a run did. `totals` is that of `dataset.json`; times are in seconds."""

    out: Path
    totals: dict[str, Any]
    was_complete: bool
    elapsed: float
    times_real_time: float


def tokenize(job: Job) -> Result:
    """Tokenize, or continue, or find that all is done.

    Raises:
        InputError: nothing to tokenize, a folder of another run or of other files, a codec that is not to be found,
            too many failures.
        KeyboardInterrupt: SIGINT or SIGTERM; finished shards are kept and no unfinished one leaves a trace.
    """
    begun = time.monotonic()
    layout = Layout(job.out.absolute())
    codec = load_codec(job)
    entry = describe_codec(codec)
    identity = identify(find_inputs(job.source), job.selection, job.sharding, job.encoding.to_dict(), entry)
    if layout.dataset.exists():
        refuse_strange_folder(layout)
        read_description(layout)  # somebody else's dataset.json is refused before anything is made
    with interrupted_by_sigterm(), only_run(layout):
        kept: set[int] = set()
        if layout.dataset.exists():
            description = read_description(layout)
            refuse_difference(layout, description["made_from"], identity)
            if not (job.retry_quarantined and description["totals"]["quarantined"]):
                return Result(layout.out, description["totals"], True, time.monotonic() - begun, 0.0)
            plan = make_plan(layout, identity)
            kept = reopen(layout, description, plan, shards_with_failures(description, plan))
            job = replace(job, max_quarantine_rate=1.0)  # it was kept to before, and no more can fail now
        else:
            if job.engine is None and has_plan(layout):  # that run may have died of a cut; workers can without harm
                job = replace(job, engine="local")
            plan = load_or_make_plan(layout, identity)
        description, speed = finish(job, layout, plan, codec, kept)
    return Result(layout.out, description["totals"], False, time.monotonic() - begun, speed)


def load_codec(job: Job) -> Codec:
    """The codec of a job, on its device. Raises InputError where shards cannot hold its codes."""
    from tokenizer import Codec

    check_device(job.encoding.device)
    codec = Codec.from_pretrained(job.codec, device=job.encoding.device)
    if codec.codebook_size > 1 << 16:
        raise InputError(f"codec {job.codec} has {codec.codebook_size} codes; shards hold at most {1 << 16} (uint16)")
    return codec


def finish(job: Job, layout: Layout, plan: Plan, codec: Codec, kept: set[int]) -> tuple[dict[str, Any], float]:
    """Do the shards of a plan that have no receipt, and write `dataset.json`.

    Args:
        kept: shards without receipt whose codes are sound: only what they lack is tried again.

    Returns:
        The content of `dataset.json`, and how many times faster than real time it went.
    """
    shutil.rmtree(layout.temporary, ignore_errors=True)  # of a run that was killed
    speed = _do_shards(job, layout, plan, codec, kept)
    return finalize(layout, plan, describe_codec(codec)), speed


def _do_shards(job: Job, layout: Layout, plan: Plan, codec: Codec, kept: set[int]) -> float:
    """Do the shards that have no receipt, or that failed so much that something must have been wrong (a file server
    away) and may now be mended. Returns how many times faster than real time."""
    receipts = [
        receipt if receipt is not None and not _failed_too_much(receipt, job.max_quarantine_rate) else None
        for receipt in (read_receipt(layout, shard) for shard in range(len(plan.shards)))
    ]
    todo = [Task(shard, keeps_codes=shard in kept) for shard, receipt in enumerate(receipts) if receipt is None]
    done_seconds = plan.seconds - sum(plan.shards[task.shard].seconds for task in todo)
    failed_before = sum(len(receipt.quarantined) for receipt in receipts if receipt is not None)
    work = ShardWork(layout.out, job.codec, codec.fingerprint, job.encoding, job.sharding.pack)
    workers = min(job.workers or _default_workers(job.encoding.device), len(todo))
    with ProgressBar(plan.seconds, done_seconds, failed_before) as bar:

        def report(event: Event) -> None:
            bar.see(event)
            if isinstance(event, Receipt):
                _stop_when_too_many_fail(job, plan, bar.quarantined, event)

        try:
            if job.engine == "inline" or (job.engine is None and workers <= 1):
                run_inline(work, todo, report, codec)
            else:
                run_processes(work, todo, report, workers)
        finally:
            shutil.rmtree(layout.temporary, ignore_errors=True)
        return bar.times_real_time


def _failed_too_much(receipt: Receipt, max_rate: float) -> bool:
    failed = len(receipt.quarantined)
    return failed > max_rate * (failed + receipt.cuts)


def _stop_when_too_many_fail(job: Job, plan: Plan, quarantined: int, latest: Receipt) -> None:
    if quarantined <= job.max_quarantine_rate * plan.cuts or not latest.quarantined:
        return
    last = latest.quarantined[-1]
    raise InputError(
        f"{quarantined} of {plan.cuts} cuts failed, more than the rate {job.max_quarantine_rate:g} allows; the last is "
        f"{last.id} ({last.source}): {last.reason}, {last.detail}. Mend what is wrong, or raise --max-quarantine-rate, "
        "and give the same command again"
    )


def _default_workers(device: str) -> int:
    if device != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS: no former


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM (a scheduler's "time is up") end the run as orderly as Ctrl-C does."""

    if threading.current_thread() is not threading.main_thread():  # the only one that may set handlers
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
