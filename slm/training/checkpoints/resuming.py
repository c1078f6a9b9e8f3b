"""What may change when a run is resumed, and where that makes the learning rate jump."""

from __future__ import annotations

import math
from typing import Any

from slm.training.settings import TrainSettings
from tokenizer.errors import InputError
from tokenizer.parsed import dataclass_from_dict
from tokenizer.runs.settings import Difference

# Settings that may change on resuming: none changes a batch, or more than the rounding of a step.
MAY_CHANGE = {
    f"train.{name}"
    for name in (
        *("steps", "validate_every", "validation_rows", "patience", "save_every", "keep_checkpoints", "keep_every"),
        *(
            "sample_every",
            "save_in_background",
            "fsdp_replicas",
            "validate_by_source",
            "skip_limit",
            "skip_sigma",
            "rows_at_once",
            "parallel",
            "compile",
            "recompute",
        ),
    )
}
MAY_FALL = {"train.learning_rate", "train.final_learning_rate"}  # so that a run can continue after its loss has risen
FORMERLY = {"held_out_by": "cut"}  # what runs did before a setting existed, if that is not its default now


def may_change(change: Difference) -> bool:
    """Whether a run may be resumed with this changed setting."""
    return change.name in MAY_CHANGE or (change.name in MAY_FALL and change.wanted < change.stored)


def jump(stored: dict[str, Any], settings: TrainSettings, step: int) -> list[str]:
    """A line if the learning rate of the step after `step` is not the one that the run would have had."""
    try:
        before = dataclass_from_dict(TrainSettings, stored, "train")
    except InputError:  # settings that this version does not know
        return []
    old, new = before.rate_at(step), settings.rate_at(step)
    if math.isclose(old, new, rel_tol=1e-9):
        return []
    line = f"the learning rate jumps here from {old:.3g} to {new:.3g}"
    begins = before.decay_begins
    if begins is not None and begins < step:
        line += f": the decay had begun after step {begins}; --resume-from a step up to that one avoids the jump"
    return [line]
