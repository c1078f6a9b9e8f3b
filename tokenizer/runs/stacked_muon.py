"""Muon for a GPU: the matrices of one shape in one stack, so that a step starts hundreds of kernels, not thousands.

A codec has 60 matrices of six shapes, and `torch.optim.Muon` orthogonalizes them one after the other: on an H100 that
took 37 of the 90 ms that the GPU was busy in a step.

Dimension letters:  N matrices of a stack    R rows    C columns
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

SCALE = 0.2  # root mean square of AdamW's updates, to which `match_rms_adamw` brings Muon's


class StackedMuon(torch.optim.Muon):
    """`torch.optim.Muon` with adjust_lr_fn "match_rms_adamw": the same updates up to rounding, and the same state."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            stacks: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    stacks[tuple(parameter.shape)].append(parameter)
            for parameters in stacks.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of the parameters of one shape."""
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        momenta = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
        whole = orthogonalized(torch.stack(list(updates)), group["ns_coefficients"], group["ns_steps"], group["eps"])
        rate = group["lr"] * SCALE * max(parameters[0].shape) ** 0.5
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(whole.to(parameters[0].dtype).unbind()), alpha=-rate)


def orthogonalized(stack: Tensor, coefficients: tuple[float, float, float], steps: int, smallest: float) -> Tensor:
    """[N, R, C] -> bfloat16 [N, R, C] with singular values near 1, by Newton-Schulz iterations of degree five
    (arXiv 2502.16982). `smallest`: norm below which a matrix is not scaled up."""
    a, b, c = coefficients
    x = stack.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=smallest)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
