"""The whole run: plan, shards that are still to do, an engine for them, and the dataset at the end.

`kill -9` it at any moment and call it again: shards with a receipt are kept, the others done, and the final bytes are
those of a run that nothing disturbed.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from pipelines.bulk.crew import Processes, Report, run_crew, run_inline
from pipelines.bulk.encoding import Encoding
from pipelines.bulk.executors.ray import Cluster, RayOptions, connected
from pipelines.bulk.finalize import count, describe_codec, finalize
from pipelines.bulk.ownership import StillOurs, once, only_run, refuse_strange_folder
from pipelines.bulk.part import Part
from pipelines.bulk.plan import Plan, Sharding, has_plan, identify, load_or_make_plan, make_plan, refuse_difference
from pipelines.bulk.progress import ProgressBar
from pipelines.bulk.reopen import reopen, shards_with_failures
from pipelines.bulk.worker_process import Event, ShardWork, Task
from pipelines.dataset.token_dataset import read_description
from pipelines.format.layout import Layout
from pipelines.format.ledger import Receipt, read_receipts
from pipelines.sources.cuts import Selection
from pipelines.sources.manifests import find_inputs
from pipelines.storage.folders import Folder, remove_tree
from tokenizer.errors import InputError
from tokenizer.files import check_place
from tokenizer.machine import check_device

if TYPE_CHECKING:
    from tokenizer import Codec


@dataclass(frozen=True)
class Job:
    """One call of `focalstream tokenize`.

    Attributes:
        source: a manifest, a Shar folder, a folder of audio, or a glob of these; a path or a URL.
        out: the folder of the dataset, on disk or behind a URL.
        codec: what `Codec.from_pretrained` takes.
        workers: processes; None: one a CPU core, or one on another device; with Ray, as many as have room.
        engine: "inline" (in this process), "local" (worker processes) or "ray" (a cluster's); None: local when that
            brings parallel work, or when the run was interrupted before.
        max_quarantine_rate: stop when more than this share of all planned cuts has failed.
        selection: which cuts and channels of the source take part.
        retry_quarantined: where the dataset is finished, try again what could not be tokenized, and nothing else.
        part: do this share of the shards; others do the rest, at the same time or not. Who finishes last writes
            `dataset.json`.
        ray: for engine "ray".
        log: a file, not in `out`, that each finished shard is noted in with the time.
    """

    source: str
    out: Folder
    codec: str
    sharding: Sharding = field(default_factory=lambda: Sharding(hours=1.0))
    encoding: Encoding = field(default_factory=Encoding)
    workers: int | None = None
    engine: str | None = None
    max_quarantine_rate: float = 0.5
    selection: Selection = field(default_factory=Selection)
    retry_quarantined: bool = False
    part: Part | None = None
    ray: RayOptions = field(default_factory=RayOptions)
    log: Path | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InputError(f"workers is {self.workers}, expected at least 1 (or engine inline for no processes)")
        if not 0 <= self.max_quarantine_rate <= 1:
            raise InputError(f"max_quarantine_rate is {self.max_quarantine_rate}, expected a share from 0 to 1")
        if self.part is not None and self.retry_quarantined:
            raise InputError("retry_quarantined is for all of a finished dataset; leave out --part")
        if self.engine == "ray" and ":" in self.encoding.device:
            raise InputError(
                f"device is {self.encoding.device}: Ray gives each worker its own GPU; expected cuda or cpu"
            )
        if self.log is not None:
            check_place(self.log)
            if isinstance(self.out, Path) and self.out.resolve() in self.log.resolve().parents:
                raise InputError(
                    f"--log {self.log}: lies in {self.out}, whose bytes know no clock; give it another place"
                )


@dataclass(frozen=True)
class Result:
    """What a run did; times are in seconds. `totals` is that of `dataset.json`, or where other parts have yet to do
    `shards_left` shards, that of the shards which are done."""

    out: Folder
    totals: dict[str, Any]
    was_complete: bool
    elapsed: float
    times_real_time: float
    shards_left: int = 0


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
    with interrupted_by_sigterm(), only_run(layout, job.part) as still_ours:
        kept: Mapping[int, float] = {}
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
            with once(layout, "plan") if job.part else contextlib.nullcontext():
                plan = load_or_make_plan(layout, identity)
        speed = do_shards(job, layout, plan, codec, kept, still_ours)
        with once(layout, "finish") if job.part else contextlib.nullcontext():
            totals, left = _finish(job, layout, plan, codec)
    return Result(layout.out, totals, False, time.monotonic() - begun, speed, left)


def load_codec(job: Job) -> Codec:
    """The codec of a job, on its device. Raises InputError where shards cannot hold its codes."""
    from tokenizer import Codec

    device = job.encoding.device if job.engine != "ray" else "cpu"  # the head of a cluster needs no GPU
    check_device(device)
    codec = Codec.from_pretrained(job.codec, device=device)
    if codec.codebook_size > 1 << 16:
        raise InputError(f"codec {job.codec} has {codec.codebook_size} codes; shards hold at most {1 << 16} (uint16)")
    return codec


def do_shards(
    job: Job,
    layout: Layout,
    plan: Plan,
    codec: Codec,
    kept: Mapping[int, float],
    still_ours: StillOurs = lambda: None,
) -> float:
    """Do the shards of a plan that have no receipt, or that failed so much that something must have been wrong (a file
    server away) and may now be mended.

    Args:
        kept: shards without receipt whose codes are sound, with the seconds of these: only what they lack is tried
            again.

    Returns:
        How many times faster than real time it went.
    """
    if job.part is None:
        remove_tree(layout.temporary)  # of a run that was killed; with parts, others write there now
    ours = [shard for shard in range(len(plan.shards)) if job.part is None or job.part.has(shard)]
    receipts = [
        receipt if receipt is not None and not _failed_too_much(receipt, job.max_quarantine_rate) else None
        for receipt in read_receipts(layout, ours)
    ]
    todo = [
        Task(shard, keeps_codes=shard in kept) for shard, receipt in zip(ours, receipts, strict=True) if receipt is None
    ]
    seconds = math.fsum(plan.shards[shard].seconds for shard in ours)
    done_seconds = seconds - math.fsum(plan.shards[task.shard].seconds - kept.get(task.shard, 0.0) for task in todo)
    failed_before = sum(len(receipt.quarantined) for receipt in receipts if receipt is not None)
    with ProgressBar(seconds, done_seconds, failed_before, job.log) as bar:

        def report(event: Event) -> None:
            still_ours()
            bar.see(event)
            if isinstance(event, Receipt) and event.quarantined:
                _stop_when_too_many_fail(job, plan, bar.quarantined, event)

        try:
            _run_engine(job, layout, codec, todo, report)
        finally:
            if job.part is None:
                remove_tree(layout.temporary)
        return bar.times_real_time


def _run_engine(job: Job, layout: Layout, codec: Codec, todo: list[Task], report: Report) -> None:
    work = ShardWork(layout.out, job.codec, codec.fingerprint, job.encoding, job.sharding.pack)
    workers = min(job.workers or _default_workers(job.encoding.device), len(todo))
    if job.engine == "ray" and todo:
        with connected(job.ray):
            cluster = Cluster(work, job.ray)
            run_crew(cluster, layout, todo, report, min(job.workers or cluster.room, len(todo)))
    elif job.engine == "inline" or (job.engine is None and workers <= 1):
        run_inline(work, todo, report, codec)
    else:
        run_crew(Processes(work), layout, todo, report, workers)


def _finish(job: Job, layout: Layout, plan: Plan, codec: Codec) -> tuple[dict[str, Any], int]:
    """Write `dataset.json` if all shards are done. Returns the totals, and how many shards are left for other parts."""
    receipts = read_receipts(layout, range(len(plan.shards)))
    done = [receipt for receipt in receipts if receipt is not None]
    if len(done) < len(receipts):
        if layout.dataset.exists():  # another part was here first, and has taken the receipts away
            return read_description(layout)["totals"], 0
        return count(plan, done), len(receipts) - len(done)
    if job.part is not None:  # each part for itself saw only its own failures
        failures = [receipt for receipt in done if receipt.quarantined]
        if failures:
            _stop_when_too_many_fail(job, plan, sum(len(receipt.quarantined) for receipt in failures), failures[-1])
    return finalize(layout, plan, describe_codec(codec), done)["totals"], 0


def _failed_too_much(receipt: Receipt, max_rate: float) -> bool:
    failed = len(receipt.quarantined)
    return failed > max_rate * (failed + receipt.cuts)


def _stop_when_too_many_fail(job: Job, plan: Plan, quarantined: int, latest: Receipt) -> None:
    if quarantined <= job.max_quarantine_rate * plan.cuts:
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
