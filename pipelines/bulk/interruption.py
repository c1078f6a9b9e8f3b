"""Signals that end a run. The first one ends it cleanly: finished shards stay, and nothing unfinished is left."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

PATIENT_SIGNALS = 2  # signals during which a run still ends cleanly; the next one ends the process at once


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM (a scheduler's time limit) end the run as cleanly as Ctrl-C does. A second signal does not disturb
    that; a third ends the process at once, as `kill -9` would."""

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    seen = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            raise KeyboardInterrupt
        if seen > PATIENT_SIGNALS:
            os._exit(128 + number)
        os.write(2, b"stopping: finished shards stay, unfinished ones are removed; once more ends this at once\n")

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
