"""The learning rate of a training step.

As functions of the step: linear warm-up, then a half cosine (arXiv 1608.03983, without restarts), or level until a
short decay at the end (arXiv 2405.18392). `Schedule` also falls at plateaus of the validation loss, or once an epoch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

ENOUGH = 0.0025  # a smaller relative fall of the validation loss is a plateau (arXiv 2509.16195's recipe)


class ScheduleSettings(Protocol):
    """The settings of a training that `Schedule` uses."""

    @property
    def schedule(self) -> str: ...  # "cosine", "plateau" or "epoch"

    @property
    def learning_rate(self) -> float: ...

    @property
    def final_learning_rate(self) -> float: ...

    @property
    def warmup_steps(self) -> int: ...

    @property
    def annealing(self) -> float: ...  # factor of each fall at a plateau or an epoch


@dataclass
class Schedule:
    """The learning rate of each step; its state goes into the checkpoint.

    Attributes:
        config: the stage's settings.
        steps: the stage's last step.
        per_epoch: steps of an epoch.
        best, previous: the lowest validation loss so far, and the last.
        anneals: times that the rate was lowered at a plateau.
    """

    config: ScheduleSettings
    steps: int
    per_epoch: int
    best: float = float("inf")
    previous: float = float("inf")
    anneals: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of `step`, counted from 0."""
        c = self.config
        if c.schedule == "cosine":
            return warmup_cosine(step, self.steps, c.warmup_steps, c.learning_rate, c.final_learning_rate)
        falls = self.anneals if c.schedule == "plateau" else step // self.per_epoch
        warmup = min(1.0, (step + 1) / c.warmup_steps) if c.warmup_steps else 1.0
        return max(c.learning_rate * warmup * c.annealing**falls, c.final_learning_rate * warmup)

    def validated(self, loss: float) -> bool:
        """Record a validation loss. Returns whether it is the best so far."""
        if self.previous < float("inf") and loss > self.previous * (1 - ENOUGH):
            self.anneals += 1
        better = loss < self.best
        self.best, self.previous = min(self.best, loss), loss
        return better

    def state(self) -> dict[str, float]:
        return {"best": self.best, "previous": self.previous, "anneals": self.anneals}

    def load(self, state: dict[str, float]) -> None:
        self.best, self.previous, self.anneals = state["best"], state["previous"], int(state["anneals"])


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
