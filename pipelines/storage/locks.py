"""Locks for places that have none (object stores): a small file that its holder keeps changing.

A holder that was killed stops changing it, and after `SILENCE_SECONDS` somebody else may take it. Clocks of different
machines are never compared: whoever waits for silence watches the file itself.

A holder that was cut off from the store for that long, and comes back, finds the file changed and stops. Should both
have worked for a while, no harm is done: a shard has the same bytes, whoever makes it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence

from pipelines.storage.folders import RemotePath
from tokenizer.errors import InputError

log = logging.getLogger(__name__)

BEAT_SECONDS = 15.0  # between two changes of the file
SILENCE_SECONDS = 60.0  # without a change: its holder is dead
LOOK_SECONDS = 2.0  # between two looks of who waits for silence


@contextlib.contextmanager
def lease(path: RemotePath, wait: bool) -> Iterator[Callable[[], None]]:
    """Hold `path`; yields a function that raises InputError when the lease is lost.

    Args:
        wait: where somebody alive holds it, wait until that is over; else raise BlockingIOError with what is known
            of the holder.
    """
    who = {"host": socket.gethostname(), "process": os.getpid(), "lease": uuid.uuid4().hex}

    def content(beat: int) -> bytes:
        return json.dumps({**who, "beat": beat}).encode("ascii")

    while not path.create(content(0)):
        log.warning("%s is there: looking for up to %g s whether its run is alive", path, SILENCE_SECONDS)
        holder = first_alive([path])
        if holder is None:
            path.unlink(missing_ok=True)
        elif not wait:
            raise BlockingIOError(holder)
    ended, lost = threading.Event(), threading.Event()

    def keep() -> None:
        beat = 0
        while not ended.wait(BEAT_SECONDS):
            beat += 1
            try:
                if json.loads(path.read_bytes())["lease"] != who["lease"]:
                    lost.set()
                    return
                path.write_bytes(content(beat))
            except FileNotFoundError:
                lost.set()
                return
            except Exception:  # the store is away; whether the lease is lost will be seen when it is back
                continue

    def check() -> None:
        if lost.is_set():
            raise InputError(
                f"{path}: another run has taken over, for this one had not been heard of; it goes on there"
            )

    thread = threading.Thread(target=keep, name="keep-lease", daemon=True)
    thread.start()
    try:
        yield check
    finally:
        ended.set()
        thread.join()
        if not lost.is_set():
            path.unlink(missing_ok=True)


def first_alive(paths: Sequence[RemotePath]) -> str | None:
    """Who holds one of these leases, in words; None when all are free, after a wait where files of them are there."""
    before = {path: data for path in paths if (data := _content(path)) is not None}
    until = time.monotonic() + SILENCE_SECONDS
    while before and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
        for path, data in list(before.items()):
            now = _content(path)
            if now is None:
                del before[path]
            elif now != data:
                return _describe(now)
    return None


def _content(path: RemotePath) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _describe(content: bytes) -> str:
    holder = json.loads(content)
    return f"process {holder['process']} on {holder['host']}"
