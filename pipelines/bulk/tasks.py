"""What a worker does: load the codec once, then tokenize and write one shard after the other.

Workers run in this process, in others or on other machines (`pipelines.bulk.executors`), so everything that passes
between them and the run is defined here and can be pickled.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from pipelines.bulk.encoding import ATTEMPTS, Encoding, encode_cuts
from pipelines.bulk.stored_plan import has_plan, shard_cuts
from pipelines.format.layout import Layout
from pipelines.format.ledger import Outcome, Receipt, quarantine
from pipelines.format.shards import stored_cuts, write_shard
from pipelines.sources.cuts import CutError
from pipelines.storage.folders import Folder
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer import Codec


@dataclass(frozen=True)
class ShardWork:
    """Everything that a worker needs to do any shard of a run."""

    out: Folder
    codec: str
    fingerprint: str
    encoding: Encoding
    pack: bool


@dataclass(frozen=True)
class Task:
    """A shard to do.

    Attributes:
        left_out: cuts that are quarantined unread because they kill workers, by position in the shard, and how the
            workers ended.
        is_trial: write nothing; the task only shows whether the worker survives.
        keeps_tokens: the shard was done before; keep its tokens, and try only the cuts that have none.
    """

    shard: int
    left_out: Mapping[int, str] = field(default_factory=dict)
    is_trial: bool = False
    keeps_tokens: bool = False


@dataclass(frozen=True)
class Ready:
    """A worker has loaded the codec and can be given tasks."""


@dataclass(frozen=True)
class Progress:
    """Seconds of audio just processed (negative when a long cut starts again)."""

    seconds: float


@dataclass(frozen=True)
class Survived:
    """A worker has survived a trial."""

    task: Task


Event = Ready | Progress | Receipt | Survived
"""What a worker reports; the receipt says that a shard is done."""

Report = Callable[[Event], None]


class Worker(Protocol):
    """Does one task at a time, and may die of it.

    Attributes:
        task: the current one; None until the first.
        reported: seconds of audio of the task that it has reported.
    """

    task: Task | None
    reported: float

    def take(self, task: Task) -> None:
        """Give the worker its next task."""

    def event(self) -> Event | None:
        """Wait for its next message; None when it died. An error that it met is raised here."""

    def ending(self) -> str | None:
        """How a dead worker ended, in words; None when its task is not at fault (its machine was lost)."""

    def stop(self) -> None:
        """End it at once, in the middle of a task too."""


def do_task(work: ShardWork, task: Task, codec: Codec, progress: Callable[[float], None]) -> Receipt | Survived:
    """Tokenize a shard and write it."""
    layout = Layout(work.out)
    cuts = shard_cuts(layout, task.shard)
    settled: dict[int, Outcome] = {
        i: quarantine(cuts[i], CutError("killed its worker", detail), ATTEMPTS) for i, detail in task.left_out.items()
    }
    if task.keeps_tokens:
        rows = {planned.member: i for i, planned in enumerate(cuts)}
        settled.update((rows[planned.member], tokens) for planned, tokens in stored_cuts(layout, task.shard))
    outcomes = encode_cuts(cuts, codec, work.encoding, progress, settled)
    if task.is_trial:
        return Survived(task)
    return write_shard(
        layout, task.shard, cuts, outcomes, codec.token_rate, codec.bits_per_token if work.pack else None
    )


def load_codec(work: ShardWork) -> Codec:
    """The codec of a run, in a worker of it.

    Raises:
        InputError: the worker does not see the OUT of the run, or finds another codec.
    """
    from tokenizer import Codec

    if not has_plan(Layout(work.out)):
        raise InputError(
            f"{work.out}: a worker process on {platform.node()} does not see the plan there; OUT must be on a disk "
            "that all machines share, or a URL that all processes can read (memory:// needs --executor inline)"
        )
    codec = Codec.from_pretrained(work.codec, device=work.encoding.device)
    if codec.fingerprint != work.fingerprint:
        raise InputError(
            f"codec {work.codec}: a worker process on {platform.node()} finds the fingerprint "
            f"{codec.fingerprint[:12]}, the run began with {work.fingerprint[:12]}; bring the codec back and give the "
            "same command again, or give another OUT"
        )
    return codec


def portable(error: Exception) -> Exception:
    """The error with the worker's traceback as text: tracebacks do not travel between processes."""
    import traceback

    return error if isinstance(error, InputError) else RuntimeError("".join(traceback.format_exception(error)))
