"""Memory for a few batches: filled by readers, copied to the device, used again.

Decoding processes need memory that they share. It has no name and lies in no folder: /dev/shm is small in containers.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import tempfile
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

BYTES = 4  # of a float32


class Closed(Exception):
    """Nobody needs buffers any more."""


class SharedMemory:
    """`count` arrays of float32, `samples` each, that processes started with it share; pages are used as they are
    touched."""

    def __init__(self, count: int, samples: int) -> None:
        self.count, self.samples = count, samples
        if hasattr(os, "memfd_create"):  # Linux
            self._file = os.memfd_create("focalstream-batches")
        else:
            with tempfile.TemporaryFile() as file:
                self._file = os.dup(file.fileno())
        os.ftruncate(self._file, count * samples * BYTES)
        self._map()

    def _map(self) -> None:
        self._pinned_for: Any = None
        self._memory = mmap.mmap(self._file, self.count * self.samples * BYTES)
        self.arrays = [
            np.frombuffer(self._memory, np.float32, self.samples, number * self.samples * BYTES)
            for number in range(self.count)
        ]

    def __getstate__(self) -> dict[str, Any]:
        """For a process that is being started: it gets the file."""
        from multiprocessing.reduction import DupFd

        return {"count": self.count, "samples": self.samples, "file": DupFd(self._file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.count, self.samples, self._file = state["count"], state["samples"], state["file"].detach()
        self._map()

    def pin(self, device: torch.device) -> None:
        """Let a GPU copy from it while it computes. Where CUDA refuses, copies wait instead."""
        import torch

        with torch.cuda.device(device):
            whole = np.frombuffer(self._memory, np.uint8)
            if failed := int(torch.cuda.cudart().cudaHostRegister(whole.ctypes.data, whole.nbytes, 0)):
                log.warning("batches cannot be pinned (CUDA error %d); copies to the GPU will be slower", failed)
                with contextlib.suppress(RuntimeError):  # the next launch of a kernel is told of the error
                    torch.zeros(1, device=device).add_(1)
            else:
                self._pinned_for = device

    def close(self) -> None:
        """Give up the file; the memory goes with its last array."""
        if self._pinned_for is not None:
            import torch

            with torch.cuda.device(self._pinned_for):
                with contextlib.suppress(RuntimeError):
                    torch.cuda.synchronize()  # a run that failed may have left copies from it under way
                torch.cuda.cudart().cudaHostUnregister(np.frombuffer(self._memory, np.uint8).ctypes.data)
        os.close(self._file)


class Buffers:
    """Numbers of arrays that are free.

    Args:
        arrays: flat float32.
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays = arrays
        self._free = list(range(len(arrays)))
        self._changed = threading.Condition()
        self._closed = False

    def take(self) -> int:
        """Wait for one that is free. Raises Closed."""
        with self._changed:
            while not self._free and not self._closed:
                self._changed.wait()
            if self._closed:
                raise Closed
            return self._free.pop()

    def give(self, number: int) -> None:
        """It may be used again."""
        with self._changed:
            self._free.append(number)
            self._changed.notify()

    def close(self) -> None:
        """End all waiting."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
