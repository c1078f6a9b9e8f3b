"""Processes of one group on this machine, forked from a server that has imported PyTorch once, without torchrun."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch


def together(work: Callable[..., None], *arguments: Any, processes: int = 2) -> None:
    """Call `work(*arguments)`, a function of a module, in each of some processes that `join_ranks` then joins."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload([work.__module__])
    torch.multiprocessing.start_processes(
        _process, (work, arguments, processes, port), processes, start_method="forkserver"
    )


def _process(rank: int, work: Callable[..., None], arguments: tuple, processes: int, port: int) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    work(*arguments)
