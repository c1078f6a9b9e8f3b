"""Decoding processes: readers that use other cores, and whose crash ends neither the run nor the worker.

A cut that kills its decoder is found at once, because it is tried alone in a new one; no other cut is read for nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from pipelines.bulk.feed.processes import die_with_parent, how_it_ended, interrupts_blocked, keep_freed_memory, portable
from pipelines.bulk.feed.reading import ReaderDied, RowReader
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from pipelines.bulk.feed.buffers import SharedMemory
    from pipelines.bulk.feed.reading import Job


class DecoderLane:
    """A decoding process, which is replaced when it dies. Raises InputError where it dies as it starts."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._closed = False
        self._lock = threading.Lock()
        self._start()

    def do(self, job: Job) -> Any:
        try:
            return self._ask(job)
        except ReaderDied:
            return job.after_death(self._ask)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._process.kill()
            self._process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        with self._lock, interrupts_blocked():
            if self._closed:  # the link stays closed, so that nobody waits at it
                raise ReaderDied("the run has ended")
            self._link, theirs = context.Pipe()
            self._process: BaseProcess = context.Process(target=_serve, args=(theirs, self._memory), daemon=True)
            self._process.start()
        theirs.close()
        try:
            self._link.recv()
        except (EOFError, OSError):
            raise InputError(f"decoders die as they start (the last by {self._ending()}); try --decoders 0") from None

    def _ask(self, job: Job) -> Any:
        try:
            self._link.send(job)
            result = self._link.recv()
        except (EOFError, OSError):
            ending = self._ending()
            self._start()
            raise ReaderDied(ending) from None
        if isinstance(result, Exception):
            raise result
        return result

    def _ending(self) -> str:
        self._process.join()
        self._link.close()
        return how_it_ended(self._process.exitcode)


def _serve(link: Connection, memory: SharedMemory) -> None:
    """The decoder's side: do jobs until it is killed."""
    die_with_parent()
    keep_freed_memory()
    reader = RowReader()
    link.send(None)
    try:
        while True:
            job: Job = link.recv()
            try:
                result = job.run(reader, memory.arrays)
            except MemoryError:
                os._exit(1)  # like a process that the kernel kills
            except Exception as error:
                result = portable(error)
            link.send(result)
    except (EOFError, BrokenPipeError):
        return
