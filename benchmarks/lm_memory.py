"""Memory of a training step of the language model: a formula, checked on small models, then the shipped shapes.

    OMP_NUM_THREADS=1 python benchmarks/lm_memory.py [--rows 8] [--row-tokens 2048]

Counted are the weights, gradients and AdamW's moments (16 bytes a parameter), what the layers keep for the backward
pass under bfloat16 autocast, and the logits that exist at once. "Mask" is attention with a mask of T x T, which keeps
the scores of every layer in float32: no fused kernel takes the mask together with grouped queries. "No mask" keeps
queries, keys, values, the output and a number per query, as flash kernels and FlexAttention do.

The check runs both forms of the real model on the CPU, and adds up what autograd keeps. It has not run on a GPU, where
PyTorch's caching, kernels' workspaces and fused norms (which keep less) make a difference of their own.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from slm.model.cross_entropy import ROWS_AT_ONCE, rows_at_once
from slm.model.packed_attention import dense_mask
from slm.model.transformer import LanguageModel, ModelConfig
from slm.training.settings import read_settings

VOCABULARY_SIZE = 4096 + 16
SMALL = ModelConfig(width=64, layers=2, heads=4, kv_heads=2, ffn_width=160, context=256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8, help="rows of one pass")
    parser.add_argument("--row-tokens", type=int, default=2048)
    args = parser.parse_args()
    print("kept by the layers for the backward pass, bytes: formula, measured")
    for config, rows in ((SMALL, 2), (replace(SMALL, layers=3, kv_heads=4), 1), (replace(SMALL, context=384), 3)):
        for masked in (True, False):
            formula, found = kept_bytes(config, rows, config.context, masked), measured(config, rows, masked)
            print(f"  {'mask' if masked else 'no mask'}: {formula:,} {found:,} ({found / formula - 1:+.2%})")
            assert abs(found / formula - 1) < 0.01
    print(f"GB (10^9 bytes) of a step of {args.rows} x {args.row_tokens} tokens: state + layers + head = sum")
    for name in ("25m", "100m", "350m"):
        config, _ = read_settings(name, {})
        for masked in (True, False):
            parts = step_bytes(config, args.rows, args.row_tokens, masked)
            shown = " + ".join(f"{part / 1e9:.1f}" for part in parts)
            print(f"  {name}, {'mask (before)' if masked else 'no mask'}: {shown} = {sum(parts) / 1e9:.1f}")


def step_bytes(config: ModelConfig, rows: int, length: int, masked: bool) -> tuple[int, int, int]:
    """State of weights and optimizer, what the layers keep, and the head's piece of logits with its gradient."""
    with torch.device("meta"):
        model = LanguageModel(config, VOCABULARY_SIZE)
    state = 16 * sum(parameter.numel() for parameter in model.parameters())
    at_once = ROWS_AT_ONCE if masked else min(rows * length, rows_at_once("cuda", VOCABULARY_SIZE))
    head = at_once * VOCABULARY_SIZE * (4 + 2 + 2) + 4 * VOCABULARY_SIZE * config.width
    return state, kept_bytes(config, rows, length, masked), head


def kept_bytes(config: ModelConfig, rows: int, length: int, masked: bool) -> int:
    """What the layers keep for the backward pass under bfloat16 autocast."""
    tokens, width, keys = rows * length, config.width, config.kv_heads * config.head_width
    norm = 8 * width + 4  # float32: its input, the normalised input, a scale
    into_matrices = 2 * width  # bfloat16, what the matrices after a norm read
    if masked:
        attention = 3 * 4 * width + 4 * config.heads * length  # float32: queries, repeated keys and values; scores
    else:
        attention = 2 * width + 2 * 2 * keys + 4 * config.heads  # and the sum of the exponentials
    mixed = 2 * width  # into the projection of the output
    feed_forward = 4 * 2 * config.ffn_width  # gate, its SiLU, up, and the product
    layer = tokens * (2 * (norm + into_matrices) + attention + mixed + feed_forward)
    matrices = 2 * (width * (2 * width + 2 * keys) + 3 * width * config.ffn_width)  # cast once, kept in bfloat16
    angles = tokens * (2 * 4 * config.head_width + 8)  # and the ids
    return config.layers * (layer + matrices) + tokens * norm + angles


def measured(config: ModelConfig, rows: int, masked: bool) -> int:
    """The bytes that autograd keeps for the layers of a real model, except its float32 weights."""
    torch.manual_seed(0)
    model = LanguageModel(config, 100).train()
    tokens = torch.zeros(rows, config.context, dtype=torch.int64)
    positions = torch.arange(config.context).expand_as(tokens)
    mask = dense_mask(tokens, tokens, config.context, torch.bfloat16) if masked else None
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in known:
            kept.setdefault(place, tensor)
        return tensor

    form = SDPBackend.MATH if masked else SDPBackend.FLASH_ATTENTION
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, sdpa_kernel(form), torch.autocast("cpu", torch.bfloat16):
        model._hidden(tokens, positions, mask)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


if __name__ == "__main__":
    main()
