"""The learning rate of a training step: linear warm-up, then a half cosine (arXiv 1608.03983, without restarts)."""

from __future__ import annotations

import math


def warmup_cosine(step: int, steps: int, warmup_steps: int, peak: float, final: float) -> float:
    """The rate of `step` (counted from 0): up to `peak` in `warmup_steps`, then down to `final` at `steps`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min((step - warmup_steps) / (steps - warmup_steps), 1.0)
    return final + (peak - final) * (0.5 + 0.5 * math.cos(math.pi * progress))
