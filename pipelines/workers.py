"""Engines: the same shards, done in this process or by worker processes of this machine.

An engine takes a list of shard numbers and reports progress and receipts; the caller need not know who did the work.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.encoding import Encoding, encode_cuts, fixed_cpu_threads
from pipelines.layout import Layout
from pipelines.plan import shard_cuts
from pipelines.shards import Receipt, write_shard

if TYPE_CHECKING:
    from tokenizer.codec import Codec

MAX_DEATHS = 2  # of workers over one shard, before the run gives up


@dataclass(frozen=True)
class ShardWork:
    """All a worker needs to do any shard of a run."""

    out: Path
    codec: str
    fingerprint: str
    encoding: Encoding


@dataclass(frozen=True)
class Progress:
    """Seconds of audio just dealt with (negative when a long cut begins anew)."""

    seconds: float


Event = Progress | Receipt
Report = Callable[[Event], None]


class WorkerDied(RuntimeError):
    """A shard brought down its worker `MAX_DEATHS` times."""


def run_inline(work: ShardWork, shards: list[int], report: Report, codec: Codec) -> None:
    """Do the shards in this process, one after the other, with a codec that is loaded already."""
    with fixed_cpu_threads():
        for shard in shards:
            report(_do_shard(work, shard, codec, lambda seconds: report(Progress(seconds))))


def run_processes(work: ShardWork, shards: list[int], report: Report, workers: int) -> None:
    """Do the shards with `workers` processes. One that dies (out of memory, killed) is replaced, its shard done again.

    Raises:
        WorkerDied: the same shard brought down two workers.
    """
    todo, deaths = deque(shards), dict.fromkeys(shards, 0)
    crew = [_Worker(work) for _ in range(min(workers, len(shards)))]
    try:
        for worker in crew:
            worker.take(todo)
        while busy := {worker.link: i for i, worker in enumerate(crew) if worker.shard is not None}:
            for i in [busy[link] for link in wait(list(busy))]:  # type: ignore[index]
                event = crew[i].event()
                if event is None:
                    report(Progress(-crew[i].reported))
                    todo.appendleft(_dead_shard(crew[i], deaths))
                    crew[i] = _Worker(work)
                else:
                    report(event)
                if event is None or isinstance(event, Receipt):
                    crew[i].take(todo)
    finally:
        for worker in crew:
            worker.stop()


def _dead_shard(worker: _Worker, deaths: dict[int, int]) -> int:
    """The shard a dead worker was at, to be done again. Raises WorkerDied when it has brought down too many."""
    worker.process.join()
    assert worker.shard is not None
    deaths[worker.shard] += 1
    if deaths[worker.shard] >= MAX_DEATHS:
        raise WorkerDied(
            f"shard {worker.shard} brought down {MAX_DEATHS} workers (the last with exit code "
            f"{worker.process.exitcode}; -9 is usually the kernel out of memory). Finished shards are kept: run the "
            "same command with fewer --workers, or remove the cut that causes it"
        )
    return worker.shard


class _Worker:
    """A worker process, the pipe to it, and the shard it is at."""

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
        self.shard: int | None = None
        self.reported = 0.0

    def take(self, todo: deque[int]) -> None:
        """Give the worker the next shard, if there is one."""
        self.shard, self.reported = (todo.popleft() if todo else None), 0.0
        if self.shard is not None:
            with contextlib.suppress(OSError):  # it died while idle: `event` finds out
                self.link.send(self.shard)

    def event(self) -> Event | None:
        """What it sent, or None when it died. An error that it met is raised here."""
        try:
            event = self.link.recv()
        except (EOFError, OSError):  # the latter when it was killed in the middle of a message
            return None
        if isinstance(event, Exception):
            raise event
        if isinstance(event, Progress):
            self.reported += event.seconds
        return event

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.link.close()


def _serve(link: Connection, work: ShardWork) -> None:
    """A worker's life: load the codec, then shards until the parent stops it."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        from tokenizer import Codec

        codec = Codec.from_pretrained(work.codec, device=work.encoding.device)
        if codec.fingerprint != work.fingerprint:
            raise RuntimeError(f"codec {work.codec} changed while the run was going on; start it again")
        with fixed_cpu_threads():
            while True:
                shard = link.recv()
                link.send(_do_shard(work, shard, codec, lambda seconds: link.send(Progress(seconds))))
    except (EOFError, BrokenPipeError):
        return
    except MemoryError:
        os._exit(1)  # as the kernel would have ended it: the shard is tried again
    except Exception as error:
        link.send(_portable(error))


def _die_with_parent() -> None:
    """End this process when its parent does, even by kill -9: an orphan would go on writing into a later run's OUT."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error with the worker's traceback as text: tracebacks do not travel between processes."""
    import traceback

    from tokenizer.errors import InputError

    return error if isinstance(error, InputError) else RuntimeError("".join(traceback.format_exception(error)))


def _do_shard(work: ShardWork, shard: int, codec: Codec, progress: Callable[[float], None]) -> Receipt:
    layout = Layout(work.out)
    cuts = shard_cuts(layout, shard)
    outcomes = encode_cuts(cuts, codec, work.encoding, progress)
    return write_shard(layout, shard, cuts, outcomes, codec.token_rate)
