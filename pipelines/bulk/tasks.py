"""What a worker does: load the codec once, tokenize and write shards, and ask for more before it runs out of them.

Workers run in this process, in others or on other machines (`pipelines.bulk.executors`), so everything that passes
between them and the run is defined here and can be pickled.
"""

from __future__ import annotations

import contextlib
import itertools
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipelines.bulk.encoding import Encoding, fed_device
from pipelines.bulk.feed.pipeline import Group
from pipelines.bulk.feed.reading import ATTEMPTS, Job, ReaderDied, Readers, RowReader
from pipelines.bulk.stored_plan import has_plan, shard_cuts
from pipelines.format.layout import Layout
from pipelines.format.ledger import Outcome, Receipt, quarantine, remove_receipt
from pipelines.format.shards import MadeShard, make_shard, store_shard, stored_cuts
from pipelines.sources.audio import expected_samples
from pipelines.sources.cuts import CutError, PlannedCut
from pipelines.sources.shar import located
from pipelines.storage.folders import Folder
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer import Codec


STORES = 4  # shards that a worker writes to disk, or uploads, at the same time


@dataclass(frozen=True)
class ShardWork:
    """Everything that a worker needs to do any shard of a run.

    Attributes:
        decoders: processes of each worker that read audio and make the files of shards; 0: threads of its own; None:
            the executor decides.
        remote: the audio lies behind URLs.
        readers: threads of each worker that read audio, where it has no decoders; None: see `fed_device`.
    """

    out: Folder
    codec: str
    fingerprint: str
    encoding: Encoding
    pack: bool
    decoders: int | None = None
    remote: bool = False
    readers: int | None = None


@dataclass(frozen=True)
class Task:
    """A shard to do.

    Attributes:
        left_out: cuts that are quarantined unread because they kill workers, by position in the shard, and how the
            workers ended.
        is_trial: write nothing; the task only shows whether the worker survives.
        keeps_tokens: the shard was done before; keep its tokens, and try only the cuts that have none.
        together: the shards that share batches, this one among them, whether or not they are still to be done; empty:
            this one alone.
        seconds: of audio that are to be done.
    """

    shard: int
    left_out: Mapping[int, str] = field(default_factory=dict)
    is_trial: bool = False
    keeps_tokens: bool = False
    together: tuple[int, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Ready:
    """A worker has loaded the codec and can be given tasks."""


@dataclass(frozen=True)
class WantsMore:
    """A worker will soon have read all that it was given."""


@dataclass(frozen=True)
class Progress:
    """Seconds of audio just processed (negative when a worker dies, whose shards are done again)."""

    seconds: float


@dataclass(frozen=True)
class Survived:
    """A worker has survived a trial."""

    task: Task


Event = Ready | WantsMore | Progress | Receipt | Survived
"""What a worker reports; the receipt says that a shard is done."""

Report = Callable[[Event], None]

Claim = Callable[[Sequence[Task]], Sequence[Task]]
"""Called with tasks that share batches just before they are begun; gives those that are still to be done."""


class Worker(Protocol):
    """Does tasks, and may die of them.

    Attributes:
        tasks: those that it was given and has not done.
        reported: seconds of audio of these that it has reported.
    """

    tasks: list[Task]
    reported: float

    def take(self, tasks: Sequence[Task]) -> None:
        """Give the worker more: tasks that share batches."""

    def event(self) -> Event | None:
        """Wait for its next message; None when it died. An error that it met is raised here."""

    def ending(self) -> str | None:
        """How a dead worker ended, in words; None when its task is not at fault (its machine was lost)."""

    def stop(self) -> None:
        """End it at once, in the middle of a task too."""


class TasksInHand:
    """The part of a `Worker` that counts."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.reported = 0.0

    def count(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, Progress):
            self.reported += event.seconds
        elif isinstance(event, (Receipt, Survived)):
            shard = event.shard if isinstance(event, Receipt) else event.task.shard
            done = next(task for task in self.tasks if task.shard == shard)
            self.tasks.remove(done)
            self.reported = self.reported - done.seconds if self.tasks else 0.0


def in_bundles(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    """Tasks in the bundles in which they share batches."""
    for _, bundle in itertools.groupby(tasks, key=lambda task: task.together or task.shard):
        yield list(bundle)


def do_tasks(
    work: ShardWork, bundles: Callable[[Report], Iterable[Sequence[Task]]], codec: Codec, report: Report
) -> None:
    """Tokenize shards and write them.

    Args:
        bundles: called with a function that reports an event, yields lists of tasks that share batches. They are taken
            in another thread, while earlier ones are being encoded.
        report: called in this thread.
    """
    with contextlib.ExitStack() as stack:
        stores = ThreadPoolExecutor(STORES, thread_name_prefix="store")
        stack.callback(stores.shutdown, cancel_futures=True)  # after the readers have ended, whose results they await
        fed = fed_device(codec, work.encoding, work.decoders or 0, work.remote, work.readers)
        pipeline, readers = stack.enter_context(fed)
        groups = (_group(work, bundle, codec, readers, stores) for bundle in bundles(pipeline.emit))
        pipeline.run(groups, report, Progress)


def _group(
    work: ShardWork, bundle: Sequence[Task], codec: Codec, readers: Readers, stores: ThreadPoolExecutor
) -> Group:
    """The cuts of all shards that share batches, of which those of the bundle are to be encoded."""
    layout = Layout(work.out)
    tasks = {task.shard: task for task in bundle}
    cuts: list[PlannedCut] = []
    known: dict[int, Outcome] = {}
    spans: dict[int, range] = {}
    for shard in bundle[0].together or (bundle[0].shard,):
        listed = shard_cuts(layout, shard)
        if shard in tasks:
            settled = _settled(layout, tasks[shard], listed)
            known.update((len(cuts) + i, outcome) for i, outcome in settled.items())
            spans[shard] = range(len(cuts), len(cuts) + len(listed))
        cuts += listed

    def finish(group: Group) -> list[Future[Any]]:
        futures = []
        for shard, span in spans.items():
            if tasks[shard].is_trial:
                futures.append(Future[Any]())
                futures[-1].set_result(Survived(tasks[shard]))
                continue
            outcomes = [group.outcomes[i] for i in span]
            # A decoder reads the cuts from the plan, which takes this process less than sending them.
            listed = None if work.decoders else [cuts[i] for i in span]
            job = MakeShard(work, shard, listed, outcomes, codec.token_rate, codec.bits_per_token)
            made = readers.submit(job, None if work.decoders else 0)
            futures.append(stores.submit(_stored, layout, made))
        return futures

    samples = [expected_samples(planned.cut, planned.seconds, codec.sample_rate_in) for planned in cuts]
    wanted = frozenset(i for span in spans.values() for i in span) - set(known)
    for i, planned in zip(sorted(wanted), located([cuts[i] for i in sorted(wanted)]), strict=True):
        cuts[i] = planned
    return Group(cuts, samples, known, wanted, finish)


def _stored(layout: Layout, made: Future[MadeShard]) -> Receipt:
    receipt = store_shard(layout, made.result())
    if not has_plan(layout):  # else its receipt would count in the next run there
        remove_receipt(layout, receipt.shard)
        if not layout.dataset.exists():  # what was just written would stop the user's `rm -r OUT`
            for path in layout.shard_files(receipt.shard):
                path.unlink(missing_ok=True)
            raise layout.removed()
    return receipt


def _settled(layout: Layout, task: Task, cuts: Sequence[PlannedCut]) -> dict[int, Outcome]:
    """Outcomes that are known before a shard is encoded, by position."""
    settled: dict[int, Outcome] = {
        i: quarantine(cuts[i], CutError("killed its worker", detail), ATTEMPTS) for i, detail in task.left_out.items()
    }
    if task.keeps_tokens:
        rows = {planned.member: i for i, planned in enumerate(cuts)}
        settled.update((rows[planned.member], tokens) for planned, tokens in stored_cuts(layout, task.shard))
    return settled


@dataclass(frozen=True)
class MakeShard:
    """A `Job` that makes the files of a shard. Another thread stores them: making them computes, storing them waits.

    Attributes:
        cuts: of the shard; None: read them from the plan.
    """

    work: ShardWork
    shard: int
    cuts: list[PlannedCut] | None
    outcomes: list[Outcome]
    token_rate: float
    bits: int

    def run(self, reader: RowReader, buffers: Sequence[np.ndarray]) -> MadeShard:
        layout = Layout(self.work.out)
        cuts = shard_cuts(layout, self.shard) if self.cuts is None else self.cuts
        pack_bits = self.bits if self.work.pack else None
        return make_shard(layout, self.shard, cuts, self.outcomes, self.token_rate, pack_bits)

    def after_death(self, ask: Callable[[Job], Any]) -> MadeShard:
        try:
            return ask(self)
        except ReaderDied as died:
            raise InputError(
                f"making the files of shard {self.shard} killed two decoders (the last by {died})"
            ) from None


def named_codec(name: str, encoding: Encoding, device: str | None = None) -> Codec:
    """What `Codec.from_pretrained` finds, in the precision and on the device of a run (or on another one)."""
    from tokenizer import Codec

    device = device or encoding.device
    if encoding.precision == "bf16":
        return Codec.from_pretrained(name, device=device, precision="bf16")
    return Codec.from_pretrained(name, device=device)


def load_codec(work: ShardWork) -> Codec:
    """The codec of a run, in a worker of it.

    Raises:
        InputError: the worker does not see the OUT of the run, or finds another codec.
    """
    if not has_plan(Layout(work.out)):
        raise InputError(
            f"{work.out}: a worker process on {platform.node()} does not see the plan there; OUT must be on a disk "
            "that all machines share, or a URL that all processes can read (memory:// needs --executor inline)"
        )
    codec = named_codec(work.codec, work.encoding)
    if codec.fingerprint != work.fingerprint:
        raise InputError(
            f"codec {work.codec}: a worker process on {platform.node()} finds the fingerprint "
            f"{codec.fingerprint[:12]}, the run began with {work.fingerprint[:12]}; bring the codec back and give the "
            "same command again, or give another OUT"
        )
    return codec
