"""The state of a run beside weights and optimizer: progress.json in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """The state of a run. With the weights and the optimizer it is all that an exact resume needs."""

    step: int = 0  # steps done
    best_step: int = -1
    best_bits_per_token: float = float("inf")  # or nats a pair, in a run on preferences
    validations_since_best: int = 0
    skipped: int = 0  # batches, and what `slm.training.spikes` compares with
    latest_losses: tuple[float, ...] = ()
    latest_norms: tuple[float, ...] = ()
