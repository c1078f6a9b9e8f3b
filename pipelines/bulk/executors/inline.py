"""Shards in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.bulk.encoding import fixed_cpu_threads
from pipelines.bulk.executors.base import Executor
from pipelines.bulk.tasks import Claim, Report, ShardWork, Task, do_tasks, in_bundles

if TYPE_CHECKING:
    from tokenizer import Codec


@dataclass(frozen=True)
class Inline(Executor):
    """Starts no processes. A cut that crashes a native library ends the run."""

    def run(self, work: ShardWork, tasks: list[Task], report: Report, codec: Codec, claim: Claim) -> None:
        with fixed_cpu_threads():
            do_tasks(work, lambda emit: filter(None, map(claim, in_bundles(tasks))), codec, report)
