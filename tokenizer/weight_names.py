"""Weights of other layouts under the names of this one."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor


def renamed(weights: dict[str, Tensor], rules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Every name after all (pattern, replacement) rules, in order, as of `re.sub`."""
    out = {}
    for name, tensor in weights.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        out[name] = tensor
    return out


def with_fused_attention(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Separate query, key and value projections as one `qkv_proj`; a missing one leaves its shape too small."""
    out = {}
    for name, tensor in weights.items():
        if ".q_proj." in name:
            parts = (weights.get(name.replace(".q_proj.", f".{part}_proj."), tensor[:0]) for part in "qkv")
            out[name.replace(".q_proj.", ".qkv_proj.")] = torch.cat(list(parts))
        elif ".k_proj." not in name and ".v_proj." not in name:
            out[name] = tensor
    return out
