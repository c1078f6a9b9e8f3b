"""How much of a machine's arithmetic a training run uses: model-FLOPs utilisation (arXiv 2204.02311, appendix B)."""

from __future__ import annotations

import re
import time

import torch

from slm.model.transformer import LanguageModel

# Dense bfloat16 products a second with float32 sums, from the makers' data sheets; names as CUDA gives them.
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
SIDE = 1024  # of the matrices whose product is timed where no data sheet is known


def flops_per_token(model: LanguageModel, row_tokens: int) -> float:
    """Floating-point operations of one token's forward and backward pass: 6 for each weight of a matrix product, and
    12 for each channel of each layer and token that attention spans (as if nothing in a row were masked but what lies
    behind the window). What `recompute` does again does not count.
    """
    config = model.config
    products = {id(p): p.numel() for p in model.layers.parameters() if p.dim() == 2}
    products |= {id(p): p.numel() for p in model.lm_head.parameters()}
    return 6.0 * sum(products.values()) + 12.0 * config.layers * config.width * min(config.context, row_tokens)


def peak_flops(device: str, bfloat16: bool) -> tuple[float, str]:
    """Operations a second that a device can do at best, and where the figure is from: "published" or "measured"."""
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
