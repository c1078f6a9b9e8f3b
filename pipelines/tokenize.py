"""The whole run: plan, shards that are still to do, an engine for them, and the dataset at the end.

`kill -9` it at any moment and call it again: shards with a receipt are kept, the others done, and the final bytes are
those of a run that nothing disturbed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from pipelines.dataset import read_description
from pipelines.encoding import Encoding
from pipelines.finalize import describe_codec, finalize
from pipelines.layout import Layout
from pipelines.ownership import refuse_strange_folder
from pipelines.plan import Plan, Sharding, has_plan, identify, load_or_make_plan, refuse_difference
from pipelines.progress import ProgressBar
from pipelines.shards import Receipt, read_receipt
from pipelines.workers import Event, ShardWork, run_inline, run_processes
from tokenizer.devices import check_device
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer.codec import Codec


@dataclass(frozen=True)
class Job:
    """One call of `focalstream tokenize`.

    Attributes:
        source: a manifest, a Shar folder, a folder of audio, or a glob of these.
        out: the folder of the dataset.
        codec: what `Codec.from_pretrained` takes.
        workers: processes; None: one a CPU core, or one on another device.
        engine: "inline" (in this process) or "local" (worker processes); None: local when that brings parallel work.
        max_quarantine_rate: stop when more than this share of all planned cuts has failed.
    """

    source: str
    out: Path
    codec: str
    sharding: Sharding = field(default_factory=lambda: Sharding(hours=1.0))
    encoding: Encoding = field(default_factory=Encoding)
    workers: int | None = None
    engine: str | None = None
    max_quarantine_rate: float = 0.5

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
    from tokenizer import Codec

    begun = time.monotonic()
    layout = Layout(job.out.absolute())
    check_device(job.encoding.device)
    codec = Codec.from_pretrained(job.codec, device=job.encoding.device)
    if codec.codebook_size > 1 << 16:
        raise InputError(f"codec {job.codec} has {codec.codebook_size} codes; shards hold at most {1 << 16} (uint16)")
    entry = describe_codec(codec)
    identity = identify(job.source, job.sharding, job.encoding.to_dict(), entry)
    with _interrupted_by_sigterm(), _only_run(layout):
        if layout.dataset.exists():
            description = read_description(layout)
            refuse_difference(layout, description["made_from"], identity)
            return Result(layout.out, description["totals"], True, time.monotonic() - begun, 0.0)
        shutil.rmtree(layout.temporary, ignore_errors=True)  # of a run that was killed
        plan = load_or_make_plan(layout, identity)
        speed = _do_shards(job, layout, plan, codec)
        description = finalize(layout, plan, entry)
    return Result(layout.out, description["totals"], False, time.monotonic() - begun, speed)


def _do_shards(job: Job, layout: Layout, plan: Plan, codec: Codec) -> float:
    """Do the shards that have no receipt, or that failed so much that something must have been wrong (a file server
    away) and may now be mended. Returns how many times faster than real time."""
    receipts = [
        receipt if receipt is not None and not _failed_too_much(receipt, job.max_quarantine_rate) else None
        for receipt in (read_receipt(layout, shard) for shard in range(len(plan.shards)))
    ]
    todo = [shard for shard, receipt in enumerate(receipts) if receipt is None]
    done_seconds = plan.seconds - sum(plan.shards[shard].seconds for shard in todo)
    failed_before = sum(len(receipt.quarantined) for receipt in receipts if receipt is not None)
    work = ShardWork(layout.out, job.codec, codec.fingerprint, job.encoding)
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
def _only_run(layout: Layout) -> Iterator[None]:
    """Hold OUT's lock; the system lets go of it however the process ends. `work/` leaves with a run that came to its
    end or never had a plan."""
    refuse_strange_folder(layout)
    if layout.dataset.exists():
        read_description(layout)  # somebody else's dataset.json is refused before anything is made
    layout.work.mkdir(parents=True, exist_ok=True)
    with open(layout.work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{layout.out}: another run is writing there; wait for it or give another OUT") from None
        try:
            yield
        finally:
            if layout.dataset.exists() or not has_plan(layout):
                shutil.rmtree(layout.work)
                with contextlib.suppress(OSError):
                    layout.out.rmdir()  # only an empty one: nothing half-written stays of a run that was refused


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
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
