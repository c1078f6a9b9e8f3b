"""Whole utterances as a stream of steps: filled up to whole chunks, and gone through piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def whole_chunks(x: Tensor, chunk: int, fill: float) -> Tensor:
    """x [B, N] filled up at the end to a whole number of chunks."""
    return torch.nn.functional.pad(x, (0, -x.shape[1] % chunk), value=fill)


def in_pieces(step: Callable[[Tensor, Any], tuple[Tensor, Any]], x: Tensor, state: Any, size: int) -> Tensor:
    """The outputs [B, M, ...] of `step` over x [B, N], `size` columns a step, side by side; so memory is bounded."""
    outputs = []
    for piece in x.split(size, dim=1):
        output, state = step(piece, state)
        outputs.append(output)
    return torch.cat(outputs, dim=1)
