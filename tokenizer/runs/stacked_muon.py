"""Muon as GPUs and processors without bfloat16 need it: the matrices of one shape in one stack, computed in the
precision that the hardware multiplies.

A codec has 60 matrices of six shapes, and `torch.optim.Muon` orthogonalizes them one after the other, always in
bfloat16. On an H100 that took 37 of the 90 ms that the GPU was busy in a step: a stack starts hundreds of kernels, not
thousands. On a processor with AVX2 alone, where PyTorch multiplies bfloat16 number by number, it took 18 of a step's 20
seconds; in float32 0.6.

Dimension letters:  N matrices of a stack    R rows    C columns
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from tokenizer.machine import training_precision

SCALE = 0.2  # root mean square of AdamW's updates, to which `match_rms_adamw` brings Muon's


class StackedMuon(torch.optim.Muon):
    """`torch.optim.Muon` with adjust_lr_fn "match_rms_adamw": the same updates up to rounding, and the same state."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            directions = self._directions(parameters, self._averaged(parameters, group), group)
            for shape, places in by_shape(parameters).items():
                chosen = [local(parameters[place]) for place in places]
                along = [directions[place].to(chosen[0].dtype) for place in places]
                torch._foreach_mul_(chosen, 1 - group["lr"] * group["weight_decay"])
                size = group["lr"] * SCALE * max(shape) ** 0.5
                if isinstance(size, Tensor):
                    torch._foreach_sub_(chosen, torch._foreach_mul(along, size))
                else:
                    torch._foreach_add_(chosen, along, alpha=-size)

    def _averaged(self, parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """The gradients averaged over the steps: of shards, this process's parts."""
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        momenta = [local(self.state[parameter]["momentum_buffer"]) for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        return list(torch._foreach_lerp(gradients, momenta, group["momentum"])) if group["nesterov"] else momenta

    def _directions(self, parameters: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Each update orthogonalized."""
        return self._orthogonal(updates, group)

    def _orthogonal(self, updates: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Whole matrices orthogonalized, bfloat16."""
        found = list(updates)
        for places in by_shape(updates).values():
            stack = torch.stack([updates[place] for place in places])
            stack = orthogonalized(stack, group["ns_coefficients"], group["ns_steps"], group["eps"])
            for place, matrix in zip(places, stack.unbind(), strict=True):
                found[place] = matrix
        return found


def by_shape(tensors: list[Tensor]) -> dict[tuple[int, ...], list[int]]:
    """The places of the tensors of each shape."""
    places: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, tensor in enumerate(tensors):
        places[tuple(tensor.shape)].append(place)
    return places


def local(tensor: Tensor) -> Tensor:
    """This process's part of a shard; other tensors as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def orthogonalized(stack: Tensor, coefficients: tuple[float, float, float], steps: int, smallest: float) -> Tensor:
    """[N, R, C] -> bfloat16 [N, R, C] with singular values near 1, by Newton-Schulz iterations of degree five
    (arXiv 2502.16982), in bfloat16 where the hardware multiplies it. `smallest`: norm below which none is scaled up."""
    a, b, c = coefficients
    x = stack.bfloat16()
    if training_precision(str(stack.device)).value == "float32":
        x = x.float()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=smallest)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).bfloat16()
