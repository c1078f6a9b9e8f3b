"""The optimizer's state on disk: tensors by parameter name, a safetensors file per process, read by any number of them.

Written by torch.distributed.checkpoint, so that each process writes and reads only its share.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from slm.model.transformer import LanguageModel
from tokenizer.runs.optimizers import Optimizers
from tokenizer.runs.ranks import Ranks

STEPS = "step"  # AdamW's count of steps, a scalar


def trained(model: LanguageModel) -> dict[str, nn.Parameter]:
    """The parameters that are not frozen, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def optimizer_state(model: LanguageModel, optimizer: Optimizers) -> dict[str, Tensor]:
    """The optimizer's tensors as "layers.0.mlp.up_proj.weight/exp_avg"."""
    states = {parameter: state for member in optimizer.members for parameter, state in member.state.items()}
    return {
        f"{name}/{kind}": tensor
        for name, parameter in trained(model).items()
        for kind, tensor in states[parameter].items()
    }


def write_optimizer_state(folder: Path, state: dict[str, Tensor], ranks: Ranks) -> None:
    """Write what `optimizer_state` gave into a folder; all processes call it together, each writes its share.

    Raises:
        OSError: in every process, if a share could not be written in one of them.
    """
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is")  # a warning that there is only one process
        try:
            dcp.save(state, storage_writer=writer, process_group=ranks.group, no_dist=ranks.world == 1)
        except dcp.CheckpointException as error:
            raise OSError(reason_of(error)) from None


def reason_of(error: BaseException) -> str:
    """What went wrong first, in one line: torch.distributed.checkpoint wraps the errors of all processes."""
    if isinstance(error, dcp.CheckpointException):
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__


def read_optimizer_state(folder: Path, model: LanguageModel, optimizer: Optimizers, ranks: Ranks) -> None:
    """Fill an optimizer that has not stepped yet. Each process reads its own share.

    Raises:
        OSError, SafetensorError, ValueError, CheckpointException: the files are damaged, incomplete or belong to
            another model.
    """
    reader = dcp.HuggingFaceStorageReader(str(folder))
    parameters = trained(model)
    kinds: dict[str, set[str]] = {name: set() for name in parameters}
    state: dict[str, Tensor] = {}
    for key, stored in reader.read_metadata().state_dict_metadata.items():
        name, _, kind = key.rpartition("/")
        assert isinstance(stored, TensorStorageMetadata)
        if name not in parameters:
            raise ValueError(f"the optimizer's state has an unknown parameter {name}")
        like = parameters[name].detach()
        if kind != STEPS and stored.size != like.shape:
            raise ValueError(f"the optimizer's state of {name} is incomplete: a file of a process is missing")
        state[key] = torch.zeros(stored.size, device=like.device) if kind == STEPS else torch.zeros_like(like)
        kinds[name].add(kind)
    for member in optimizer.members:
        mine = {id(p) for group in member.param_groups for p in group["params"]}
        names = [name for name, parameter in parameters.items() if id(parameter) in mine]
        expected = set[str]().union(*(kinds[name] for name in names))
        for name in names:
            if lacking := sorted(expected - kinds[name]) or ([] if expected else ["everything"]):
                raise ValueError(f"the optimizer's state of {name} lacks {lacking[0]}: a file of a process is missing")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is")
        dcp.load(state, storage_reader=reader, no_dist=ranks.world == 1)
    for member in optimizer.members:
        for group in member.param_groups:
            for name, parameter in parameters.items():
                if any(parameter is mine for mine in group["params"]):
                    member.state[parameter].update({kind: state[f"{name}/{kind}"] for kind in kinds[name]})
