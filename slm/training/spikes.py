"""Batches whose gradient is not finite, or whose loss or gradient is far above the usual, can be skipped.

The rule of OLMo 2 (arXiv 2501.00656): further than some standard deviations above the mean of the latest 128 steps. A
skipped batch leaves weights and optimizer as they were; the next step takes the next batch. What was seen is part of
the checkpoint, so a resumed run skips the same batches.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

from slm.training.settings import TrainSettings
from tokenizer.errors import InputError

LATEST = 128  # steps that are compared with
FEWEST = 32  # steps before anything counts as a spike


class Spikes:
    """Decides about each batch, the same in all processes.

    Args:
        settings: `skip_limit` and `skip_sigma`.
        skipped: batches skipped so far.
        losses, norms: of the latest steps that were not skipped.

    Attributes:
        skipped, losses, norms: the same now.
    """

    def __init__(
        self,
        settings: TrainSettings,
        skipped: int = 0,
        losses: tuple[float, ...] = (),
        norms: tuple[float, ...] = (),
    ) -> None:
        self._settings = settings
        self.skipped = skipped
        self.losses, self.norms = deque(losses, LATEST), deque(norms, LATEST)

    def skips(self, step: int, nats: float, norm: float) -> bool:
        """Whether to skip the batch of a step (counted from 0) with this loss and this norm of the gradient.

        Raises:
            InputError: it is to be skipped, but `skip_limit` batches have been; only for gradients that are not finite
                if the limit is 0.
        """
        limit, finite = self._settings.skip_limit, math.isfinite(norm) and math.isfinite(nats)
        if finite and not (limit and (self._above(nats, self.losses) or self._above(norm, self.norms))):
            if limit and self._settings.skip_sigma:
                self.losses.append(nats)
                self.norms.append(norm)
            return False
        if self.skipped < limit:
            self.skipped += 1
            return True
        what = "the loss or the gradient is far above the usual" if finite else "the gradient is no longer finite"
        done = f", and {limit} batches have been skipped (train.skip_limit)" if limit else ""
        raise InputError(
            f"step {step + 1}: {what} (loss {nats:.3f}, norm {norm:.3g}){done}; resume with a train.learning_rate "
            f"below {self._settings.learning_rate} (with --resume-from if the loss had risen before), or begin "
            "with a longer train.warmup_steps" + ("" if limit else "; --skip-limit 20 skips such batches")
        )

    def _above(self, value: float, latest: deque[float]) -> bool:
        sigma = self._settings.skip_sigma
        if not sigma or len(latest) < FEWEST:
            return False
        return value > statistics.fmean(latest) + sigma * statistics.pstdev(latest)
