"""Data parallel training: processes started by `torchrun`, each with its own batches, one set of weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tokenizer.errors import InputError

Value = TypeVar("Value")

PATIENCE = timedelta(days=2)  # of the others while the first decodes the corpus; NCCL's default is 10 minutes


@dataclass(frozen=True)
class Ranks:
    """This process among the others. Without `torchrun` there is only one."""

    rank: int = 0
    world: int = 1

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
            dist.barrier()

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes, in their order, in every process. Values can be pickled."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        """All processes run the block; if it raises InputError or OSError in one of them, it does in all.

        So no process waits for one that has stopped. The block itself must not make the processes wait for each other.

        Raises:
            InputError: of this process, or else the first of another, with the same message.
        """
        own: Exception | None = None
        try:
            yield
        except (InputError, OSError) as error:
            own = error
        messages = self.gather(None if own is None else str(own))
        if own is not None:
            raise own
        if heard := next((message for message in messages if message is not None), None):
            raise InputError(heard)

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
    """Join the processes that `torchrun` started, if it did: this one's place, and its device ("cuda:3")."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks(), device
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), world), device
    finally:
        dist.destroy_process_group()
