"""A worker process: it loads the codec once, then does the tasks that it is sent, one at a time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Protocol

from pipelines.bulk.encoding import ATTEMPTS, Encoding, Outcome, encode_cuts, fixed_cpu_threads
from pipelines.bulk.plan import has_plan, shard_cuts
from pipelines.format.layout import Layout
from pipelines.format.ledger import Receipt, quarantine
from pipelines.format.shards import write_shard
from pipelines.format.stored_shard import stored_cuts
from pipelines.sources.cuts import CutError
from pipelines.storage.folders import Folder
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer import Codec


@dataclass(frozen=True)
class ShardWork:
    """All a worker needs to do any shard of a run."""

    out: Folder
    codec: str
    fingerprint: str
    encoding: Encoding
    pack: bool


@dataclass(frozen=True)
class Task:
    """A shard to do.

    Attributes:
        left_out: cuts that are quarantined unread, by position in the shard: those that kill workers, and how.
        is_trial: write nothing; the question is whether the worker survives.
        keeps_codes: the shard is done already, and only what it lacks is to be tried again.
    """

    shard: int
    left_out: Mapping[int, str] = field(default_factory=dict)
    is_trial: bool = False
    keeps_codes: bool = False


@dataclass(frozen=True)
class Ready:
    """A worker has loaded the codec and can be given tasks."""


@dataclass(frozen=True)
class Progress:
    """Seconds of audio just dealt with (negative when a long cut begins anew)."""

    seconds: float


@dataclass(frozen=True)
class Survived:
    """The end of a trial."""

    task: Task


Event = Ready | Progress | Receipt | Survived


class Worker(Protocol):
    """Whoever does tasks one at a time, and may die of it.

    Attributes:
        task: what it is at; None while it loads the codec, and while it waits.
        reported: seconds of audio of the task that it has reported.
    """

    task: Task | None
    reported: float

    def take(self, task: Task) -> None:
        """Give the worker its next task."""

    def event(self) -> Event | None:
        """What it sends next, once it does, or None when it died. An error that it met is raised here."""

    def ending(self) -> str | None:
        """How a dead worker ended, for people; None: by no fault of its task."""

    def stop(self) -> None:
        """End it, whatever it is at."""


def do_task(work: ShardWork, task: Task, codec: Codec, progress: Callable[[float], None]) -> Receipt | Survived:
    """Tokenize a shard and write it."""
    layout = Layout(work.out)
    cuts = shard_cuts(layout, task.shard)
    settled: dict[int, Outcome] = {
        i: quarantine(cuts[i], CutError("killed its worker", detail), ATTEMPTS) for i, detail in task.left_out.items()
    }
    if task.keeps_codes:
        rows = {planned.member: i for i, planned in enumerate(cuts)}
        settled.update((rows[planned.member], codes) for planned, codes in stored_cuts(layout, task.shard))
    outcomes = encode_cuts(cuts, codec, work.encoding, progress, settled)
    if task.is_trial:
        return Survived(task)
    return write_shard(
        layout, task.shard, cuts, outcomes, codec.token_rate, codec.bits_per_token if work.pack else None
    )


def load_codec(work: ShardWork) -> Codec:
    """The codec of a run, in a worker of it.

    Raises:
        InputError: the worker does not see what the run does: OUT, or the same codec.
    """
    from tokenizer import Codec

    if not has_plan(Layout(work.out)):
        raise InputError(
            f"{work.out}: a worker process on {os.uname().nodename} does not see the plan there; OUT must be on a disk "
            "that all machines share, or a URL that is not of one process alone (memory:// needs --engine inline)"
        )
    codec = Codec.from_pretrained(work.codec, device=work.encoding.device)
    if codec.fingerprint != work.fingerprint:
        raise InputError(
            f"codec {work.codec}: a worker process on {os.uname().nodename} finds the fingerprint "
            f"{codec.fingerprint[:12]}, the run began with {work.fingerprint[:12]}; bring the codec back and give the "
            "same command again, or give another OUT"
        )
    return codec


class WorkerProcess:
    """A worker process, the pipe to it, and the task it is at."""

    def __init__(self, work: ShardWork) -> None:
        # Spawned, not forked: a forked child inherits torch's thread pools and CUDA state in the middle of their work.
        context = multiprocessing.get_context("spawn")
        self.link, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, work), daemon=True)
        # Ctrl-C reaches the whole process group, but only the parent decides: children are born with SIGINT blocked.
        resource_tracker.ensure_running()  # else `start` starts it, and in doing so unblocks SIGINT
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
        self.task: Task | None = None
        self.reported = 0.0

    def take(self, task: Task) -> None:
        self.task, self.reported = task, 0.0
        with contextlib.suppress(OSError):  # it died while idle: `event` finds out
            self.link.send(task)

    def event(self) -> Event | None:
        try:
            event = self.link.recv()
        except (EOFError, OSError):  # the latter when it was killed in the middle of a message
            return None
        if isinstance(event, Exception):
            raise event
        if isinstance(event, Progress):
            self.reported += event.seconds
        return event

    def ending(self) -> str:
        self.process.join()
        self.link.close()
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"exit code {code}; 1 is usually memory that could not be had"
        why = {signal.SIGKILL: "; usually the kernel out of memory", signal.SIGSEGV: "; a crash in a native library"}
        return f"{signal.Signals(-code).name}{why.get(signal.Signals(-code), '')}"

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.link.close()


def _serve(link: Connection, work: ShardWork) -> None:
    """A worker's life: load the codec, then shards until the parent stops it."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        codec = load_codec(work)
        link.send(Ready())
        with fixed_cpu_threads():
            while True:
                task = link.recv()
                link.send(do_task(work, task, codec, lambda seconds: link.send(Progress(seconds))))
    except (EOFError, BrokenPipeError):
        return
    except MemoryError:
        os._exit(1)  # as the kernel would have ended it: the shard is tried again
    except Exception as error:
        link.send(portable(error))


def _die_with_parent() -> None:
    """End this process when its parent does, even by kill -9: an orphan would go on writing into a later run's OUT."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def portable(error: Exception) -> Exception:
    """The error with the worker's traceback as text: tracebacks do not travel between processes."""
    import traceback

    return error if isinstance(error, InputError) else RuntimeError("".join(traceback.format_exception(error)))
