"""A part of the shards, as one job of a cluster does it: `--part 3/16`, or `--part slurm` in a Slurm job array."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipelines.bulk.executors.base import Executor
from pipelines.bulk.ownership import Part
from pipelines.bulk.tasks import Claim, Report, ShardWork, Task
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer import Codec


@dataclass(frozen=True)
class ArrayTask(Executor):
    """One job of an array: it does its part of the shards by another executor. The job that ends last finishes the
    dataset.

    Attributes:
        part: which share of the shards.
        within: what does them in this job.
    """

    part: Part = field()  # `Executor` has a default
    within: Executor

    spans_machines = True

    @property
    def works_here(self) -> bool:  # type: ignore[override]
        return self.within.works_here

    def run(self, work: ShardWork, tasks: list[Task], report: Report, codec: Codec, claim: Claim) -> None:
        self.within.run(work, tasks, report, codec, claim)

    def check_device(self, device: str) -> None:
        self.within.check_device(device)

    def processes(self) -> int:
        return self.within.processes()

    def after_interruption(self) -> Executor:
        return ArrayTask(self.part, self.within.after_interruption())


def read_part(text: str, environment: Mapping[str, str] = os.environ) -> Part:
    """`I/N`, or "slurm" for the position of this task in its Slurm job array.

    Raises:
        InputError: there is no such part, or this is not a task of an array with evenly spaced tasks (only there the
            number of tasks is known).
    """
    if text == "slurm":
        return _slurm_part(environment)
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--part is {text}, expected I/N with I from 1 to N (3/16), or slurm in a Slurm job array")
    return Part(int(found[1]), int(found[2]))


def _slurm_part(environment: Mapping[str, str]) -> Part:
    """From the variables of https://slurm.schedmd.com/job_array.html; STEP is 1 in most arrays."""
    names = ("ID", "COUNT", "MIN", "MAX")
    try:
        task, count, first, last = (int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in names)
        step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
    except (KeyError, ValueError) as error:
        raise InputError(
            f"--part slurm needs the variables of a Slurm job array, and {error} is missing or not a number; use "
            "`sbatch --array=0-15`, or give --part I/N"
        ) from None
    if step < 1 or last - first != step * (count - 1) or (task - first) % step or not first <= task <= last:
        raise InputError(
            f"--part slurm: a job array of {count} tasks from {first} to {last} in steps of {step}, and this is task "
            f"{task}; expected an unbroken range, as of `--array=0-15`. For some parts of it give --part I/N"
        )
    return Part((task - first) // step + 1, count)
