"""Low-rank adaptation (LoRA, arXiv 2106.09685): the model stays as it is, and small matrices beside it are trained.

A matrix W [O, I] of a layer becomes W + scale * up @ down, with down [R, I] random and up [O, R] zero at the start, so
training begins at the model's own outputs. Only `down` and `up` are trained. A checkpoint holds them by themselves, for
an exact resume, and an ordinary model in which they are added to the matrices.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slm.model.transformer import LanguageModel
from tokenizer.errors import InputError

LAYERS = {
    "all": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "feed-forward": ("gate_proj", "up_proj", "down_proj"),
}
ADAPTERS = "adapters.safetensors"  # in a checkpoint
DOWN, UP = ".down", ".up"  # ends of names of adapters
SEED_STREAM = 7_919  # keeps the adapters' draw apart from others of the run's seed


class LowRankLinear(nn.Linear):
    """A linear layer without bias whose weight is frozen, and its update.

    Args:
        base: whose weight is shared.
        rank: R.
        scale: factor of the update.
        generator: draws `down`.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float, generator: torch.Generator) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.scale = base.in_features, base.out_features, scale
        self.weight = base.weight.requires_grad_(False)
        self.register_parameter("bias", None)
        drawn = torch.randn(rank, base.in_features, generator=generator) / math.sqrt(base.in_features)
        self.down = nn.Parameter(drawn.to(base.weight))
        self.up = nn.Parameter(base.weight.new_zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return F.linear(x, self.weight) + self.scale * F.linear(F.linear(x, self.down), self.up)


def add_adapters(model: LanguageModel, rank: int, layers: str, scale: float, seed: int) -> None:
    """Freeze a model and give the chosen matrices of its layers adapters, the same for the same seed.

    Args:
        model: holds the weights to start from.
        rank: R, of every adapter.
        layers: a key of `LAYERS`.
        scale: factor of the updates.
        seed: of the run.

    Raises:
        InputError: the rank is not below the width of a matrix.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed * SEED_STREAM + 1)
    for layer in model.layers:
        for block in layer.children():
            for name, module in list(block.named_children()):
                if name not in LAYERS[layers] or not isinstance(module, nn.Linear):
                    continue
                if rank >= (narrow := min(module.weight.shape)):
                    raise InputError(
                        f"train.lora is {rank}, but {name} of the model's layers has rank {narrow}; expected less"
                    )
                setattr(block, name, LowRankLinear(module, rank, scale, generator))


def adapters_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapters among the weights of a model; none without them."""
    return {name: tensor for name, tensor in weights.items() if name.endswith((DOWN, UP))}


def separated(weights: Mapping[str, Tensor], scale: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of a model with adapters as those of an ordinary model, and the adapters; none without them.

    Args:
        weights: whole tensors by name, as `LanguageModel.stored_weights` names them; float32 on the CPU.
        scale: factor of the updates.
    """
    adapters = adapters_of(weights)
    merged = {name: tensor for name, tensor in weights.items() if name not in adapters}
    for name in adapters:
        if name.endswith(UP):
            layer = name.removesuffix(UP)
            update = adapters[name] @ adapters[layer + DOWN]
            merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + scale * update
    return merged, adapters


def fingerprint(model: LanguageModel) -> str:
    """Sha256 in hex of all weights. Identifies what a run with adapters, or one with a reference model, starts from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.stored_weights().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
