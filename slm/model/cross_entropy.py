"""The loss over a large vocabulary, a few rows at a time, so that the logits of a batch are never in memory at once.

Dimension letters:  N targets    D width    V vocabulary
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -100  # a target that is left out of the loss
ROWS_AT_ONCE = 512  # on a CPU: their logits fit its cache
LOGITS_AT_ONCE = 1 << 28  # on a GPU, in float32: 1 GiB, so that a few large products do it


def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats of the logits `hidden @ weight.T`, summed over the targets that are not `IGNORED`.

    Up to rounding it equals `F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")`. The gradient
    is computed together with the loss, while the logits exist, as in Liger kernels (arXiv 2410.10989, 3.2).

    Args:
        hidden: [N, D].
        weight: [V, D]. Under autocast the products use autocast's dtype; the softmax is at least float32.
        targets: int64 [N].

    Returns:
        A scalar.
    """
    dtype = matrix_dtype(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        return _SummedCrossEntropy.apply(hidden, weight, targets, dtype)


def matrix_dtype(x: Tensor) -> torch.dtype:
    """The dtype that autocast gives x in a matrix product; the dtype of x without autocast."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def rows_at_once(device: str, vocabulary_size: int) -> int:
    """Targets whose logits are in memory together, on a kind of device."""
    return ROWS_AT_ONCE if device == "cpu" else max(ROWS_AT_ONCE, LOGITS_AT_ONCE // vocabulary_size)


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        learning = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        exact = torch.promote_types(hidden.dtype, torch.float32)
        factor = weight.to(dtype)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        to_hidden, to_weight = torch.empty_like(hidden), torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        at_once = rows_at_once(hidden.device.type, len(weight))
        for start in range(0, len(hidden), at_once):
            here = slice(start, start + at_once)
            rows = hidden[here].to(dtype)
            counted = targets[here] != IGNORED
            wanted = targets[here].clamp(min=0)[:, None]
            logits = (rows @ factor.T).to(exact)
            normaliser = logits.logsumexp(-1, keepdim=True)
            total += ((normaliser - logits.gather(1, wanted))[:, 0] * counted).sum()
            if learning:
                error = logits.sub_(normaliser).exp_()
                error.scatter_add_(1, wanted, error.new_full((1, 1), -1.0).expand_as(wanted)).mul_(counted[:, None])
                error = error.to(dtype)
                to_hidden[here] = error @ factor
                if to_weight is not None:  # it is None where the head is frozen
                    to_weight += error.T @ rows
        if learning:
            ctx.save_for_backward(to_hidden, to_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, share: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        to_hidden, to_weight = ctx.saved_tensors
        return to_hidden * share, None if to_weight is None else to_weight * share, None, None
