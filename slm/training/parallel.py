"""One model over several processes: whole in each of them (DDP), or a share of every weight in each (FSDP2)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from slm.model.transformer import LanguageModel
from tokenizer.runs.ranks import Ranks


def distribute(model: LanguageModel, how: str, ranks: Ranks) -> nn.Module:
    """What to call in training in place of the model, which stays what is saved.

    Gradients come out as the mean over the processes.

    Args:
        model: the same in every process, on its device. With "fsdp" its parameters become shares of themselves.
        how: "ddp" or "fsdp"; one process needs neither.
        ranks: this process among the others.
    """
    if ranks.world == 1:
        return model
    if how == "ddp":
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    mesh = init_device_mesh(model.embed_tokens.weight.device.type, (ranks.world,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def gradients_stay(trainee: nn.Module) -> AbstractContextManager:
    """While passes of one step are still to come: DDP need not exchange gradients yet. FSDP does, to stay small."""
    return trainee.no_sync() if isinstance(trainee, DistributedDataParallel) else nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from the shares of all processes, who must all ask; one that is whole is given back."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fill(tensor: Tensor, values: Tensor) -> None:
    """Copy a whole tensor, or this process's share of it, into a parameter."""
    with torch.no_grad():
        if isinstance(tensor, DTensor):
            values = values.to(tensor.device)
            tensor.copy_(distribute_tensor(values, tensor.device_mesh, tensor.placements, src_data_rank=None))
        else:
            tensor.copy_(values)


def settle(model: LanguageModel) -> None:
    """After a forward pass without a backward one: FSDP's parameters are shares again."""
    if isinstance(model, FSDPModule):
        model.reshard()
