"""Locks that keep two runs out of one folder: of the operating system on disk (flock), leases in object stores.

A lock of the operating system ends with its process, however that ends. Object stores have none, so a lease is a small
file that its holder keeps changing. When the holder is killed the file stops changing, and after `SILENCE_SECONDS`
another run may take the lease. Clocks of different machines are never compared: a waiting run watches the file itself.

A holder that loses the store for that long and comes back finds the file changed, and stops. If both runs worked for a
while, no harm is done: a shard has the same bytes whichever run writes it.
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
from pathlib import Path

from pipelines.storage.folders import Folder, RemotePath
from tokenizer.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

BEAT_SECONDS = 15.0  # between two changes of the file by its holder
SILENCE_SECONDS = 60.0  # without a change, after which the holder counts as dead
LOOK_SECONDS = 2.0  # between two reads of the file by a run that waits

StillHeld = Callable[[], None]
"""Raises InputError when another run has taken the lock, which can only happen to a lease."""


def held(path: Folder, wait: bool) -> contextlib.AbstractContextManager[StillHeld]:
    """Hold a lock file, by flock on disk and by a lease behind a URL.

    Args:
        wait: when another process holds it, wait until it is free; otherwise raise BlockingIOError.

    Raises:
        BlockingIOError: saying who holds it.
        InputError: there are no file locks on this file system or operating system.
    """
    return lease(path, wait) if isinstance(path, RemotePath) else flocked(path, wait)


@contextlib.contextmanager
def flocked(path: Path, wait: bool) -> Iterator[StillHeld]:
    """Hold a lock file on disk; arguments and errors as of `held`."""
    require_file_locks(path)
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, "w")  # noqa: SIM115
        except FileNotFoundError:  # a run that just ended has removed the folder
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        except BlockingIOError:
            file.close()
            raise BlockingIOError(f"it holds {path.name}") from None
        except OSError as error:
            file.close()
            raise InputError(
                f"{path}: cannot be locked ({error.strerror}); mount the file system with locks (flock) or give an OUT "
                "on another one"
            ) from error
        file.close()  # the file was removed after it was opened
    with file:
        yield lambda: None


def is_flocked(path: Path) -> bool:
    """Whether a process holds this lock file on disk."""
    require_file_locks(path)
    with contextlib.suppress(FileNotFoundError), open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def require_file_locks(path: Path) -> None:
    """Raise InputError on an operating system without flock (Windows)."""
    if fcntl is None:
        raise InputError(
            f"{path}: this operating system has no file locks (flock), which keep two runs out of one folder; run on "
            "Linux or macOS (on Windows in WSL), or give an OUT behind a URL"
        )


@contextlib.contextmanager
def lease(path: RemotePath, wait: bool) -> Iterator[StillHeld]:
    """Hold a lease; arguments and errors as of `held`."""
    who = {"host": socket.gethostname(), "process": os.getpid(), "lease": uuid.uuid4().hex}

    def content(beat: int) -> bytes:
        return json.dumps({**who, "beat": beat}).encode("ascii")

    while not path.create(content(0)):
        log.warning("%s exists: watching it for up to %g s to see whether its run is alive", path, SILENCE_SECONDS)
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
            except Exception:  # the store does not answer; the next beat that reaches it will tell
                continue

    def check() -> None:
        if lost.is_set():
            raise InputError(
                f"{path}: another run has taken over, because this one could not reach the store for "
                f"{SILENCE_SECONDS:g} s; that run continues the work"
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
    """A holder of one of these leases, in words; None when all are free, which takes a wait where lease files exist."""
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
