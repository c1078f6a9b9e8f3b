"""Memory that goes back to the system when it is freed."""

from __future__ import annotations

import ctypes
import sys

MMAP_THRESHOLD = -3  # of glibc's `mallopt`
LARGE_BYTES = 1 << 18


def return_large_blocks() -> None:
    """Let glibc give each freed block of 256 KiB or more back to the system; elsewhere, do nothing.

    glibc raises the size from which it does so to that of the largest block freed so far, up to 32 MiB. After one long
    prompt or upload, all such blocks would then share a heap that keeps its largest size.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(MMAP_THRESHOLD, LARGE_BYTES)
