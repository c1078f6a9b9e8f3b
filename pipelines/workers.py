"""Engines: the same shards, done in this process or by worker processes of this machine.

An engine is a generator of events for a list of shard numbers; `pipelines.tokenize` does not know who did the work.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pipelines.encoding import Encoding, encode_cuts, fixed_cpu_threads
from pipelines.layout import Layout
from pipelines.plan import shard_cuts
from pipelines.shards import Receipt, write_shard

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


class WorkerDied(RuntimeError):
    """A shard brought down its worker `MAX_DEATHS` times."""


def run_inline(work: ShardWork, shards: list[int], codec: Any) -> Iterator[Event]:
    """Do the shards in this process, one after the other, with a codec that is loaded already."""
    events: deque[Event] = deque()
    with fixed_cpu_threads():
        for shard in shards:
            receipt = _do_shard(work, shard, codec, lambda seconds: events.append(Progress(seconds)))
            yield from events
            events.clear()
            yield receipt


def run_processes(work: ShardWork, shards: list[int], workers: int) -> Iterator[Event]:
    """Do the shards with `workers` processes. One that dies (out of memory, killed) is replaced, its shard done again.

    Raises:
        WorkerDied: the same shard brought down two workers.
    """
    todo, deaths = deque(shards), dict.fromkeys(shards, 0)
    crew = [_Worker(work) for _ in range(min(workers, len(shards)))]
    try:
        for worker in crew:
            worker.take(todo)
        while busy := [worker for worker in crew if worker.shard is not None]:
            ready = wait([worker.link for worker in busy])
            for worker in [worker for worker in busy if worker.link in ready]:
                try:
                    event = worker.link.recv()
                except (EOFError, ConnectionResetError):
                    yield Progress(-worker.reported)
                    _count_death(worker, deaths)
                    assert worker.shard is not None
                    todo.appendleft(worker.shard)
                    crew[crew.index(worker)] = worker = _Worker(work)
                    worker.take(todo)
                    continue
                if isinstance(event, Exception):
                    raise event
                yield event
                worker.saw(event, todo)
    finally:
        for worker in crew:
            worker.stop()


def _count_death(worker: _Worker, deaths: dict[int, int]) -> None:
    worker.process.join()
    assert worker.shard is not None
    deaths[worker.shard] += 1
    if deaths[worker.shard] >= MAX_DEATHS:
        raise WorkerDied(
            f"shard {worker.shard} brought down {MAX_DEATHS} workers (the last with exit code "
            f"{worker.process.exitcode}; -9 is usually the kernel out of memory). Finished shards are kept: run the "
            "same command with fewer --workers, or remove the cut that causes it"
        )


class _Worker:
    """A worker process, the pipe to it, and the shard it is at."""

    def __init__(self, work: ShardWork) -> None:
        # Spawned, not forked: a forked child inherits torch's thread pools and CUDA state in the middle of their work.
        context = multiprocessing.get_context("spawn")
        self.link, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self.process.start()
        theirs.close()
        self.shard: int | None = None
        self.reported = 0.0

    def take(self, todo: deque[int]) -> None:
        """Give the worker the next shard, if there is one."""
        self.shard, self.reported = (todo.popleft() if todo else None), 0.0
        if self.shard is not None:
            try:
                self.link.send(self.shard)
            except OSError:  # it died while idle: `recv` finds out, and the shard goes to another worker
                return

    def saw(self, event: Event, todo: deque[int]) -> None:
        if isinstance(event, Progress):
            self.reported += event.seconds
        else:
            self.take(todo)

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.link.close()


def _serve(link: Connection, work: ShardWork) -> None:
    """A worker's life: load the codec, then shards until the parent stops it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
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


def _do_shard(work: ShardWork, shard: int, codec: Any, progress: Any) -> Receipt:
    layout = Layout(work.out)
    cuts = shard_cuts(layout, shard)
    outcomes = encode_cuts(cuts, codec, work.encoding, progress)
    return write_shard(layout, shard, cuts, outcomes, codec.token_rate)
