"""The whole run: plan, shards that are still to do, an executor for them, and the dataset at the end.

Kill it at any moment and call it again: shards with a receipt are kept, the others done, and the final bytes are those
of a run without interruption.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.bulk.claims import Alone, Claims
from pipelines.bulk.encoding import MOST_READERS, Encoding
from pipelines.bulk.executors.base import Executor
from pipelines.bulk.executors.local import Local
from pipelines.bulk.finalize import count, finalize, reopen, shards_with_failures
from pipelines.bulk.interruption import interrupted_by_sigterm
from pipelines.bulk.ownership import Part, dealt_to, once, only_run, refuse_strange_folder
from pipelines.bulk.plan import Sharding, identify, load_or_make_plan, make_plan, refuse_difference
from pipelines.bulk.progress import ProgressBar
from pipelines.bulk.stored_plan import Plan, has_plan, read_plan, shard_cuts
from pipelines.bulk.tasks import Event, ShardWork, Task, named_codec
from pipelines.format.description import CodecEntry, Totals, read_description
from pipelines.format.layout import Layout
from pipelines.format.ledger import Receipt, read_receipts, remove_receipt, shards_with_receipts
from pipelines.sources.cuts import Selection, is_remote
from pipelines.sources.manifests import find_inputs
from pipelines.storage.folders import Folder, RemotePath, remove_tree, sizes_in
from pipelines.storage.leases import StillHeld, are_exact
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
        executor: where the shards are done; see `pipelines.bulk.executors`.
        max_quarantine_rate: stop when more than this share of all planned cuts has failed.
        selection: which cuts and channels of the source take part.
        retry_quarantined: when the dataset is finished, try again the cuts that failed, and nothing else.
        plan_only: divide the input into shards, store that, and end; parts that start later need not wait for it.
        log: a file outside of `out` to append a line to for each finished shard, with the time.
        decoders: processes of each worker that read audio and write shards; 0: threads of the worker; None: none on a
            CPU, on a GPU what the executor finds best.
        readers: threads of each worker that read audio, in place of decoders; None: two, and behind URLs 16 to 64.
    """

    source: str
    out: Folder
    codec: str
    sharding: Sharding = field(default_factory=lambda: Sharding(hours=1.0))
    encoding: Encoding = field(default_factory=Encoding)
    executor: Executor = field(default_factory=lambda: Local(inline_if_one=True))
    max_quarantine_rate: float = 0.5
    selection: Selection = field(default_factory=Selection)
    retry_quarantined: bool = False
    plan_only: bool = False
    log: Path | None = None
    decoders: int | None = None
    readers: int | None = None

    def __post_init__(self) -> None:
        if self.decoders is not None and self.decoders < 0:
            raise InputError(f"decoders is {self.decoders}, expected 0 or more")
        if self.readers is not None and not 1 <= self.readers <= MOST_READERS:
            raise InputError(f"readers is {self.readers}, expected 1 to {MOST_READERS}")
        if self.readers and self.decoders:
            raise InputError(
                f"readers is {self.readers} and decoders is {self.decoders}: readers are threads of a worker that has "
                "no decoders; leave out one of them"
            )
        if not 0 <= self.max_quarantine_rate <= 1:
            raise InputError(f"max_quarantine_rate is {self.max_quarantine_rate}, expected a share from 0 to 1")
        if self.part is not None and self.retry_quarantined:
            raise InputError("retry_quarantined is for all of a finished dataset; leave out --part")
        if self.plan_only and (self.part is not None or self.retry_quarantined):
            raise InputError("plan_only is for all of an input; leave out --part and --retry-quarantined")
        self.executor.check_device(self.encoding.device)
        if self.log is not None:
            check_place(self.log)
            if isinstance(self.out, Path) and self.out.resolve() in self.log.resolve().parents:
                raise InputError(
                    f"--log {self.log}: lies in {self.out}, whose bytes depend on no clock; give it another place"
                )

    @property
    def part(self) -> Part | None:
        """The share of the shards that this job does; None: all of them. Parts may run at the same time or one after
        another; the one that ends last writes `dataset.json`."""
        return self.executor.part


@dataclass(frozen=True)
class Result:
    """What a run did; times are in seconds.

    Attributes:
        totals: those of `dataset.json`; while other parts still have to do `shards_left` shards, those of the shards
            of this part. `planned` and `skipped` are always of the whole input.
        was_complete: there was nothing to do.
    """

    out: Folder
    totals: Totals
    was_complete: bool
    elapsed: float
    times_real_time: float
    shards_left: int = 0


def tokenize(job: Job) -> Result:
    """Tokenize a corpus, continue an interrupted run, or find that everything is done.

    Raises:
        InputError: nothing to tokenize, a folder of another run or of other files, a codec that cannot be found, too
            many failures.
        KeyboardInterrupt: SIGINT or SIGTERM; finished shards are kept, and no unfinished one leaves a trace.
    """
    began = time.monotonic()
    layout = Layout(job.out.absolute())
    codec = load_codec(job)
    inputs = find_inputs(job.source)

    def identity(plan: Plan | None = None) -> dict[str, Any]:
        return identify(inputs, job.selection, job.sharding, job.encoding.to_dict(), codec.fingerprint, plan)

    if layout.dataset.exists():  # one of another program is refused before anything is made
        refuse_strange_folder(layout)
        read_description(layout)
    with interrupted_by_sigterm(), only_run(layout, job.part) as still_held:
        kept: Mapping[int, float] = {}
        if layout.dataset.exists():
            description = read_description(layout)
            refuse_difference(layout, description.made_from, identity())
            if not (job.retry_quarantined and description.totals.quarantined):
                return Result(layout.out, description.totals, True, time.monotonic() - began, 0.0)
            plan = make_plan(layout, identity())
            kept = reopen(layout, description, plan, shards_with_failures(description, plan))
            job = replace(job, max_quarantine_rate=1.0)  # the first run kept to it, and no further cuts can fail
        else:
            if has_plan(layout):
                job = replace(job, executor=job.executor.after_interruption())
            with _one_part_at_a_time(job, layout, "plan", lambda: has_plan(layout)) as planning:
                if layout.dataset.exists():  # the others have finished it since this part looked
                    return Result(layout.out, read_description(layout).totals, True, time.monotonic() - began, 0.0)
                stored = read_plan(layout) if has_plan(layout) else None
                plan = load_or_make_plan(layout, identity(stored), planning, job.executor.processes())
        if job.plan_only:
            return Result(layout.out, count(plan, []), False, time.monotonic() - began, 0.0, len(plan.shards))
        try:
            speed = do_shards(job, layout, plan, codec, kept, still_held)
        except (InputError, OSError):
            if job.part is None or not layout.dataset.exists():
                raise
            # Other parts have taken over all of its shards, finished the dataset, and removed the plan under its hands.
            return Result(layout.out, read_description(layout).totals, True, time.monotonic() - began, 0.0)
        if job.part is not None and (left := _without_receipt(layout, plan)):
            ours = read_receipts(layout, _shards_of(job, plan))
            totals = count(plan, [receipt for receipt in ours if receipt is not None])
            return Result(layout.out, totals, False, time.monotonic() - began, speed, left)
        with _one_part_at_a_time(job, layout, "finish", layout.dataset.exists):
            totals, left = _finish(job, layout, plan, codec)
    return Result(layout.out, totals, False, time.monotonic() - began, speed, left)


def load_codec(job: Job) -> Codec:
    """The codec of a job, on its device where this process may encode. Raises InputError where shards cannot hold its
    tokens."""
    device = job.encoding.device if job.executor.works_here and not job.plan_only else "cpu"
    check_device(device)
    codec = named_codec(job.codec, job.encoding, device)
    if codec.codebook_size > 1 << 16:
        raise InputError(
            f"codec {job.codec} has a codebook of {codec.codebook_size}; shards hold at most {1 << 16} (uint16)"
        )
    return codec


def do_shards(
    job: Job,
    layout: Layout,
    plan: Plan,
    codec: Codec,
    kept: Mapping[int, float],
    still_held: StillHeld,
) -> float:
    """Do the shards of a plan that have no receipt. Shards with too many failures are done again too: then something
    else was wrong, such as a file server that did not answer, and may work now.

    Args:
        kept: shards without receipt whose tokens are sound, and the seconds of audio in these tokens. Only their
            other cuts are tried again.
        still_held: called with every event; raises when another run has taken over.

    Returns:
        How many times faster than real time it went.
    """
    if job.part is None:
        remove_tree(layout.temporary)  # left by a run that was killed; other parts may be writing there now
    ours = _shards_of(job, plan)
    listed = shards_with_receipts(layout) if job.part else set()
    finished = {
        shard: receipt
        for shard, receipt in zip(ours, read_receipts(layout, ours), strict=True)
        if receipt is not None and not _failed_too_much(receipt, job.max_quarantine_rate)
    }
    if again := listed.intersection(ours).difference(finished):
        with _one_part_at_a_time(job, layout, "finish", layout.dataset.exists):  # another part may be reading them
            if layout.dataset.exists():
                return 0.0
            for shard in again:
                remove_receipt(layout, shard)  # other parts would take it for done

    def task(shard: int) -> Task:
        group = _together(shard // job.encoding.batch_shards, plan, job.encoding)
        return Task(shard, keeps_tokens=shard in kept, together=group, seconds=seconds_of(shard))

    def seconds_of(shard: int) -> float:
        return plan.shards[shard].seconds - kept.get(shard, 0.0)

    tasks = [task(shard) for shard in ours if shard not in finished]
    seconds = math.fsum(plan.shards[shard].seconds for shard in ours)
    done_seconds = seconds - math.fsum(task.seconds for task in tasks)
    failed_before = sum(len(receipt.quarantined) for receipt in finished.values())
    first = tasks[0].shard if tasks else 0
    remote = bool(tasks or job.part) and any(map(is_remote, shard_cuts(layout, first)))
    work = ShardWork(layout.out, job.codec, codec.fingerprint, job.encoding, job.sharding.pack, job.decoders, remote)
    work = replace(work, readers=job.readers, decoders=0 if job.readers else work.decoders)
    with ProgressBar(seconds, done_seconds, failed_before, job.log) as bar, shared(job, layout) as claims:

        def report(event: Event) -> None:
            still_held()
            claims.check()
            bar.see(event)
            if isinstance(event, Receipt):
                claims.done(event.shard)
                if event.quarantined:
                    _stop_when_too_many_fail(job, plan, bar.quarantined, event)

        def claim(bundle: Sequence[Task]) -> Sequence[Task]:
            left = claims.take(bundle)
            bar.expect(math.fsum(task.seconds for task in left) - math.fsum(task.seconds for task in bundle))
            return left

        try:
            job.executor.run(work, tasks, report, codec, claim)
            while more := claims.left_by_others(len(plan.shards), task):
                bar.expect(math.fsum(task.seconds for task in more))
                job.executor.run(work, more, report, codec, claim)
        finally:
            if job.part is None:
                remove_tree(layout.temporary)
        return bar.times_real_time


def shared(job: Job, layout: Layout) -> contextlib.AbstractContextManager[Alone | Claims]:
    """The claims of a part. Behind a URL there are none if the store could grant one claim to two parts."""
    if job.part is None or (isinstance(layout.work, RemotePath) and not are_exact(layout.work)):
        return contextlib.nullcontext(Alone())
    return contextlib.closing(Claims(layout, job.part, job.encoding.batch_shards))


def _shards_of(job: Job, plan: Plan) -> list[int]:
    """The shards of this part. Shards that share batches are in the same part, because `batch_shards` belongs to the
    plan's identity and so is the same for all parts."""
    groups = dealt_to(job.part, -(-len(plan.shards) // job.encoding.batch_shards))
    return [shard for group in groups for shard in _together(group, plan, job.encoding)]


def _together(group: int, plan: Plan, encoding: Encoding) -> tuple[int, ...]:
    """The shards of a group, which share batches."""
    first = group * encoding.batch_shards
    return tuple(range(first, min(first + encoding.batch_shards, len(plan.shards))))


def _without_receipt(layout: Layout, plan: Plan) -> int:
    """How many shards have no receipt, by its name alone; 0 when the dataset is finished and they are gone."""
    left = len(plan.shards) - len(sizes_in(layout.receipts))
    return 0 if layout.dataset.exists() else max(left, 0)


def _finish(job: Job, layout: Layout, plan: Plan, codec: Codec) -> tuple[Totals, int]:
    """Write `dataset.json` if all shards are done. Returns the totals, and how many shards are left for other parts."""
    receipts = read_receipts(layout, range(len(plan.shards)))
    done = [receipt for receipt in receipts if receipt is not None]
    if len(done) < len(receipts):
        if layout.dataset.exists():  # another part has finished the dataset and removed the receipts
            return read_description(layout).totals, 0
        return count(plan, done), len(receipts) - len(done)
    if job.part is not None:  # each part saw only its own failures
        failures = [receipt for receipt in done if receipt.quarantined]
        if failures:
            _stop_when_too_many_fail(job, plan, sum(len(receipt.quarantined) for receipt in failures), failures[-1])
    return finalize(layout, plan, CodecEntry.of(codec), done).totals, 0


def _one_part_at_a_time(
    job: Job, layout: Layout, what: str, done: Callable[[], bool]
) -> contextlib.AbstractContextManager[StillHeld]:
    return once(layout, what, done) if job.part else contextlib.nullcontext(lambda: None)


def _failed_too_much(receipt: Receipt, max_rate: float) -> bool:
    failed = len(receipt.quarantined)
    return failed > max_rate * (failed + receipt.cuts)


def _stop_when_too_many_fail(job: Job, plan: Plan, quarantined: int, latest: Receipt) -> None:
    if quarantined <= job.max_quarantine_rate * plan.cuts:
        return
    last = latest.quarantined[-1]
    raise InputError(
        f"{quarantined} of {plan.cuts} cuts failed, more than the rate {job.max_quarantine_rate:g} allows; the last is "
        f"{last.id} ({last.source}): {last.reason}, {last.detail}. Fix the cause, or raise --max-quarantine-rate, and "
        "give the same command again"
    )
