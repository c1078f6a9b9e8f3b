"""The precision of a training run: as it was asked for, as the run began, or what the hardware multiplies."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from tokenizer.errors import InputError
from tokenizer.machine import training_precision

AUTO = "auto"  # for the setting `bfloat16`: where the hardware multiplies it


def check_bfloat16(value: bool | str, name: str) -> None:
    """Raise InputError unless the setting `name` is true, false or "auto"."""
    if not isinstance(value, bool) and value != AUTO:
        raise InputError(f"{name} is {value!r}; expected true, false or {AUTO}")


def resolved_bfloat16(wanted: bool | str, device: str, record: Path, say: bool) -> bool:
    """Whether to train in bfloat16.

    Args:
        wanted: the setting: true, false or "auto".
        device: a torch device.
        record: the run's `run.json`; a run that began goes on in its own precision, on whatever machine.
        say: print what was chosen, and why, on standard error.
    """
    if isinstance(wanted, bool):
        return wanted
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(record.read_text(encoding="utf-8"))["train"]["bfloat16"]
        if isinstance(stored, bool):
            return stored
    choice = training_precision(device)
    if say:
        print(f"training in {choice.value}: {choice.reason}", file=sys.stderr)
    return choice.value == "bfloat16"
