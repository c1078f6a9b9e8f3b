"""The learning rate of a training step: linear warm-up, then a half cosine (arXiv 1608.03983, without restarts), or
level until a short decay at the end (arXiv 2405.18392)."""

from __future__ import annotations

import math


def warmup_cosine(step: int, steps: int, warmup_steps: int, peak: float, final: float) -> float:
    """The rate of `step` (counted from 0): up to `peak` in `warmup_steps`, then down to `final` at `steps`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min((step - warmup_steps) / (steps - warmup_steps), 1.0)
    return final + (peak - final) * (0.5 + 0.5 * math.cos(math.pi * progress))


def warmup_stable_decay(step: int, steps: int, warmup_steps: int, decay_steps: int, peak: float, final: float) -> float:
    """The rate of `step` (counted from 0): up to `peak`, level, then from it to `final` over the last `decay_steps`.

    The decay is one minus a square root, which arXiv 2405.18392 finds better than a line.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(max((step - (steps - decay_steps)) / decay_steps, 0.0), 1.0)
    return final + (peak - final) * (1 - math.sqrt(progress))
