"""The learning rate of a stage: warm-up, then a cosine, a fall at plateaus, or a fall an epoch."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizer.runs.decay import warmup_cosine
from tokenizer.training.config import StageConfig

ENOUGH = 0.0025  # share by which a validation loss must fall below the one before (arXiv 2509.16195's recipe)


@dataclass
class Schedule:
    """The rate of each step; what it remembers goes into the checkpoint.

    Attributes:
        config: the stage's settings.
        steps: the stage's last step.
        per_epoch: steps of an epoch.
        best, previous: the lowest validation loss so far, and the last.
        anneals: times that the rate was lowered at a plateau.
    """

    config: StageConfig
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
        """Take note of a validation loss; whether it is the best so far."""
        if self.previous < float("inf") and loss > self.previous * (1 - ENOUGH):
            self.anneals += 1
        better = loss < self.best
        self.best, self.previous = min(self.best, loss), loss
        return better

    def state(self) -> dict[str, float]:
        return {"best": self.best, "previous": self.previous, "anneals": self.anneals}

    def load(self, state: dict[str, float]) -> None:
        self.best, self.previous, self.anneals = state["best"], state["previous"], int(state["anneals"])
