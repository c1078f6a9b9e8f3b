"""What all child processes of a run have in common: how they start, how they end, and what becomes of their errors."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import wait

from tokenizer.errors import InputError

KEPT_BYTES = 64 << 20  # of freed memory that a process holds at most
LARGEST_KEPT = 32 << 20  # bytes of a block of those, at most what glibc allows
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Block SIGINT, so that a process started now ignores it: Ctrl-C reaches the whole process group, but only the
    parent acts on it. Does nothing on Windows, which blocks no signals."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # otherwise the process starts it, which unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def how_it_ended(code: int | None) -> str:
    """The exit code of a process in words."""
    if code is None or code >= 0:
        return f"exit code {code}; 1 usually means that memory ran out"
    name = signal.Signals(-code).name
    why = {
        "SIGKILL": "; usually the kernel, because memory ran out",
        "SIGSEGV": "; a crash in a native library",
    }
    return name + why.get(name, "")


def portable(error: Exception) -> Exception:
    """The error with the traceback as text: tracebacks do not travel between processes."""
    import traceback

    return error if isinstance(error, InputError) else RuntimeError("".join(traceback.format_exception(error)))


def keep_freed_memory() -> None:
    """Have malloc use the memory of one cut again for the next one. By itself glibc gives blocks of more than 128 kB
    back to the system, which has to fill them with zeros again: a fifth of the time that decoding FLAC takes."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)
        libc.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)


def die_with_parent() -> None:
    """End this process when its parent ends, even by kill -9: an orphan could write into the OUT of a later run."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
