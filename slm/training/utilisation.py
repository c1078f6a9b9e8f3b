"""Model FLOPs utilisation of a training run (arXiv 2204.02311, appendix B)."""

from __future__ import annotations

import re
import time

import torch

from slm.model.transformer import LanguageModel

# Dense bfloat16 FLOPs per second with float32 accumulation, from the vendors' data sheets; names as in CUDA.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
SIDE = 1024  # of the matrices in the measured product, for devices without a published figure


def flops_per_token(model: LanguageModel, row_tokens: int) -> float:
    """Floating-point operations of the forward and backward pass for one token.

    6 for each weight of a matrix product, and 12 for each channel, layer and token that attention spans (only the
    window is taken into account, not other masking). A frozen weight costs 4: it has no gradient. The extra work of
    `recompute` is not counted.
    """
    config = model.config
    weights = [p for p in model.layers.parameters() if p.dim() == 2] + list(model.lm_head.parameters())
    products = {id(p): (6.0 if p.requires_grad else 4.0) * p.numel() for p in weights}
    return sum(products.values()) + 12.0 * config.layers * config.width * min(config.context, row_tokens)


def peak_flops(device: str, bfloat16: bool) -> tuple[float, str]:
    """Peak FLOPs per second of a device, and the source of the figure: "published" or "measured"."""
    kind = torch.device(device).type
    if kind == "cuda" and bfloat16:
        name = torch.cuda.get_device_name(device)
        for known, peak in PEAK_FLOPS.items():
            if re.search(rf"\b{known}\b", name):
                return peak, "published"
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    matrix = torch.full((SIDE, SIDE), 0.5, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - began)
    return 2 * SIDE**3 / best, "measured"
