"""Locks that keep two runs out of one folder: of the operating system on disk (flock; on Windows msvcrt.locking),
leases in object stores.

A lock of the operating system ends with its process, however that ends. Object stores have none; see
`pipelines.storage.leases`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from pipelines.storage.folders import Folder, RemotePath
from pipelines.storage.leases import StillHeld, is_unclaimed, lease
from tokenizer.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:  # everything else
    msvcrt = None  # type: ignore[assignment]

PAUSE = 0.2  # seconds between two looks at a lock on Windows, where waiting for one has a limit of 10 seconds


@contextlib.contextmanager
def held(
    path: Folder,
    wait: bool,
    done: Callable[[], bool] = lambda: False,
    at_end: Callable[[], None] = lambda: None,
) -> Iterator[StillHeld]:
    """Hold a lock file, by flock on disk and by a lease behind a URL.

    Arguments and errors are those of `lease`. On disk, where locks are passed on at once, `done` is not looked at.

    Raises:
        InputError: there are no file locks on this file system or operating system.
    """
    if isinstance(path, RemotePath):
        with lease(path, wait, done, at_end) as still_held:
            yield still_held
        return
    with flocked(path, wait) as still_held:
        try:
            yield still_held
        finally:
            at_end()


@contextlib.contextmanager
def flocked(path: Path, wait: bool) -> Iterator[StillHeld]:
    """Hold a lock file on disk; errors as of `held`."""
    require_file_locks(path)
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, "ab")  # noqa: SIM115
        except FileNotFoundError:  # a run that just ended has removed the folder
            continue
        try:
            _lock(file, wait)
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
    try:
        yield lambda: None
    finally:
        _unlock(file)
        file.close()
        if fcntl is None:  # open files cannot be removed there, so whoever removed the folder has left this one
            with contextlib.suppress(OSError):  # another process waits for it, or there is more in its folder
                path.unlink()
                path.parent.rmdir()


def is_flocked(path: Path) -> bool:
    """Whether a process holds this lock file on disk."""
    require_file_locks(path)
    with contextlib.suppress(FileNotFoundError), open(path) as file:
        try:
            _lock(file, wait=False, shared=True)
        except BlockingIOError:
            return True
        _unlock(file)
    return False


def looks_free(path: Folder) -> bool:
    """Whether nobody holds a lock file. A lease whose holder may have died does not look free."""
    return is_unclaimed(path) if isinstance(path, RemotePath) else not is_flocked(path)


def _lock(file: IO[Any], wait: bool, shared: bool = False) -> None:
    """Lock an open file, on Windows never shared. Raises BlockingIOError where it is held, OSError where that fails."""
    if fcntl is not None:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        return
    while True:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            return
        except PermissionError:
            if not wait:
                raise BlockingIOError from None
        time.sleep(PAUSE)


def _unlock(file: IO[Any]) -> None:
    """Unlock an open file. Windows needs that before it is closed; elsewhere closing is enough."""
    if fcntl is None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)


def require_file_locks(path: Path) -> None:
    """Raise InputError on an operating system without locks of files."""
    if fcntl is None and msvcrt is None:
        raise InputError(
            f"{path}: this operating system has no file locks, which keep two runs out of one folder; run on Linux, "
            "macOS or Windows, or give an OUT behind a URL"
        )
