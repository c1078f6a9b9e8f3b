"""Data parallel training: processes started by `torchrun`, each with its own batches, one set of weights."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tokenizer.errors import InputError

Value = TypeVar("Value")

PATIENCE = timedelta(days=2)  # how long the others wait while the first process reads or decodes the corpus
STALLED = timedelta(minutes=15)  # between two meetings in training; longer, and a process has stopped answering
LOST = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out")  # in errors of meetings


@dataclass(frozen=True)
class Ranks:
    """This process among the others. Without `torchrun` there is only one."""

    rank: int = 0
    world: int = 1
    group: Any = field(default=None, kw_only=True)  # of torch.distributed; None: the one of all collectives

    @contextmanager
    def first(self) -> Iterator[None]:
        """The first process runs the block before the others."""
        if self.rank:
            self.meet()
        yield
        if not self.rank:
            self.meet()

    def meet(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            dist.barrier(self.group)

    def apart(self) -> Ranks:
        """The same processes, for a thread: its collectives do not mix with those of others. All call this together."""
        return self if self.world == 1 else replace(self, group=dist.new_group(backend="gloo", timeout=STALLED))

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes, in their order, in every process. Values can be pickled."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, self.group)
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        """All processes run the block; if it raises InputError or OSError in one of them, it does in all.

        So no process waits for one that has stopped. The block itself must not make the processes wait for each other.
        One process of each machine is to print the message; in the others `is_said` is set.

        Raises:
            InputError: of this process, or else the first of another, with the same message.
        """
        own: InputError | None = None
        host = socket.gethostname()
        try:
            yield
        except InputError as error:
            own = error
        except OSError as error:
            own = InputError(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        answers = self.gather((host, None if own is None else str(own)))
        heard = next((message for _, message in answers if message is not None), None)
        if heard is None:
            return
        here = [rank for rank, (other, _) in enumerate(answers) if other == host]
        failed = [rank for rank in here if answers[rank][1] is not None]
        shared = own or InputError(heard)
        shared.is_said = self.rank != (failed or here)[0]
        raise shared

    def keep_pace(self) -> None:
        """From now on no process waits longer than `STALLED` for another: all have read their data."""
        if self.world > 1:
            dist.distributed_c10d._set_pg_timeout(STALLED)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes: one sum of one flat tensor.

        A parameter that this process's batch did not use (a batch without text, say) counts with a gradient of zero:
        other processes may have used it.
        """
        if self.world == 1:
            return
        gradients = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        pieces = (flat / self.world).split([g.numel() for g in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        if self.world > 1:
            dist.all_reduce(values)
            values = values / self.world
        return values

    def any(self, flag: bool, device: torch.device | str) -> bool:
        """Whether the flag is up in any process, so that all of them stop at the same step."""
        return bool(self.mean(torch.tensor(float(flag), device=device)) > 0)


@contextmanager
def join_ranks(device: str) -> Iterator[tuple[Ranks, str]]:
    """Join the processes that `torchrun` started, if it did: this one's place, and its device ("cuda:3").

    Nothing may use CUDA before, so that each process uses its own GPU alone. If a process dies, the block ends in the
    others with InputError.

    Raises:
        InputError: this machine has fewer GPUs than processes, or another process died or stopped answering.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks(), device
        return
    local = int(os.environ["LOCAL_RANK"])
    on_cuda = device.startswith("cuda")
    if on_cuda:
        if local >= (count := torch.cuda.device_count()):
            raise InputError(
                f"torchrun started {os.environ.get('LOCAL_WORLD_SIZE', 'more')} processes here, but this machine has "
                f"{count} GPUs: give --nproc-per-node {max(count, 1)}"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    ranks = Ranks(int(os.environ["RANK"]), world)
    with lost_process_as_input_error(ranks, local):
        # gloo beside NCCL, for what is in the CPU's memory.
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo", timeout=PATIENCE)
        yield ranks, device
        dist.destroy_process_group()


@contextmanager
def lost_process_as_input_error(ranks: Ranks, local: int) -> Iterator[None]:
    """Turn the error of a collective whose other end is gone into one line, which one process of a machine prints."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        if not isinstance(error, dist.DistError) and not any(word in reason.lower() for word in LOST):
            raise
        lost = InputError(
            f"process {ranks.rank} of {ranks.world} on {socket.gethostname()}: another process has died or stopped "
            f"answering ({reason[:160]}); its own message says why. Continue with --resume"
        )
        lost.is_said = local > 0
        raise lost from None
