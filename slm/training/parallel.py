"""One model over several processes: replicated (DDP), or with every weight sharded (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from slm.checkpoint import materialise
from slm.model.transformer import LanguageModel
from tokenizer.errors import InputError
from tokenizer.runs.ranks import Ranks


def distribute(
    model: LanguageModel,
    how: str,
    ranks: Ranks,
    replicas: int = 1,
    bfloat16: bool = False,
    device: str = "cpu",
    initial: Iterable[tuple[str, Tensor]] | None = None,
) -> nn.Module:
    """The module to call in training. The model itself is what is saved.

    Gradients are averaged over the processes.

    Args:
        model: the same in every process, on the device or the meta device. With "fsdp" its parameters become shards.
        how: "ddp" or "fsdp"; unused with one process.
        ranks: this process and the number of processes.
        replicas: with "fsdp", groups of processes that hold all shards each; between them gradients are averaged.
        bfloat16: with "fsdp", gather the layers' weights in bfloat16; the residual stream stays float32.
        device: of this process.
        initial: names and full weights of a model on the meta device, which are read one after the other.

    Raises:
        InputError: the processes cannot be divided into as many groups.
    """
    if ranks.world == 1:
        return model
    if how == "ddp":
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    if ranks.world % replicas:
        raise InputError(
            f"train.fsdp_replicas is {replicas}, which does not divide {ranks.world} processes; give a divisor of them"
        )
    kind, shards = torch.device(device).type, ranks.world // replicas
    if replicas > 1:
        mesh = init_device_mesh(kind, (replicas, shards), mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh(kind, (shards,))
    policy = MixedPrecisionPolicy()
    if bfloat16:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)
    if initial is not None:
        materialise(model, device)
        load_weights(model, initial)
    return model


def without_gradient_sync(trainee: nn.Module) -> AbstractContextManager:
    """For all but the last pass of a step: DDP does not synchronise gradients yet. FSDP does, to save memory."""
    return trainee.no_sync() if isinstance(trainee, DistributedDataParallel) else nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a shard, gathered from all processes, which must all call this; others are returned as is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: LanguageModel, ranks: Ranks, copied: bool = False) -> dict[str, Tensor]:
    """The full weights that a file holds, on the CPU, for the first process; none for the others, which with FSDP must
    call this too.

    Weights of a model on the CPU are the model's own tensors, unless they are to be `copied`.
    """
    settle(model)
    found = {}
    for name, tensor in model.stored_weights().items():
        is_own = tensor.device.type == "cpu" and not isinstance(tensor, DTensor)
        gathered = whole(tensor.detach())
        if not ranks.rank:
            found[name] = gathered.to("cpu", copy=copied and is_own)
    return found


def load_weights(model: LanguageModel, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Copy full weights that fit, of all or some parameters by name, into a model or this process's shards of it."""
    stored = model.stored_weights()
    with torch.no_grad():
        for name, values in weights:
            tensor = stored[name]
            if isinstance(tensor, DTensor):
                mesh, placements = tensor.device_mesh, tensor.placements
                values = distribute_tensor(values.to(tensor.device), mesh, placements, src_data_rank=None)
            tensor.copy_(values)


def settle(model: LanguageModel) -> None:
    """Shard FSDP's parameters again after a forward pass without a backward pass."""
    if isinstance(model, FSDPModule):
        model.reshard()
