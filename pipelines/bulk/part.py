"""A share of a run's shards, for one job of a cluster: `--part 3/16`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tokenizer.errors import InputError


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `of` parts: every `of`-th shard, so that each has some of all regions of a corpus."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def has(self, shard: int) -> bool:
        return shard % self.of == self.number - 1


def read_part(text: str, environment: Mapping[str, str] = os.environ) -> Part:
    """`I/N`, or "slurm": the place of this task in its Slurm job array.

    Raises:
        InputError: there is no such part, or this is no task of an array whose tasks are evenly spaced (others do not
            say how many there are).
    """
    if text == "slurm":
        return _slurm_part(environment)
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--part is {text}, expected I/N with I from 1 to N (3/16), or slurm in a Slurm job array")
    return Part(int(found[1]), int(found[2]))


def _slurm_part(environment: Mapping[str, str]) -> Part:
    """https://slurm.schedmd.com/job_array.html: the variables, of which STEP is 1 in most arrays."""
    names = ("ID", "COUNT", "MIN", "MAX")
    try:
        task, count, first, last = (int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in names)
        step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
    except (KeyError, ValueError) as error:
        raise InputError(
            f"--part slurm needs the variables of a Slurm job array, and {error} is missing or no number; use "
            "`sbatch --array=0-15`, or give --part I/N"
        ) from None
    if step < 1 or last - first != step * (count - 1) or (task - first) % step or not first <= task <= last:
        raise InputError(
            f"--part slurm: a job array of {count} tasks from {first} to {last} in steps of {step}, and this is task "
            f"{task}; expected an unbroken range, as of `--array=0-15`. For some parts of it give --part I/N"
        )
    return Part((task - first) // step + 1, count)
