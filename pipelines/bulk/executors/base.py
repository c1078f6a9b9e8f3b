"""What an executor is: where the shards of a run are done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # an interface needs no more
    from pipelines.bulk.ownership import Part
    from pipelines.bulk.tasks import Claim, Report, ShardWork, Task
    from tokenizer import Codec


class Executor(ABC):
    """Does tasks, one per shard, and reports progress and receipts. The shards have the same bytes wherever it runs.

    Attributes:
        part: the share of the shards that it does; None: all of them.
        spans_machines: whether other machines may work on the same dataset. Then nothing that decides the bytes may
            depend on this one.
        works_here: whether this machine needs the device that the codec runs on.
    """

    part: Part | None = None
    spans_machines = False
    works_here = True

    def processes(self) -> int:
        """Of this machine, that may read a large input at the same time when it is planned."""
        return 1

    @abstractmethod
    def run(self, work: ShardWork, tasks: list[Task], report: Report, codec: Codec, claim: Claim) -> None:
        """Do all tasks.

        Args:
            report: called in this process with every event of a worker; what it raises ends the work.
            codec: the one of the run, loaded in this process.
            claim: called in this process before shards that share batches are begun, also when they are done a second
                time; perhaps in another thread.

        Raises:
            InputError: a worker cannot be started, or the workers go on dying.
        """

    def check_device(self, device: str) -> None:  # noqa: B027
        """Raise InputError if this executor cannot give its workers this device."""

    def after_interruption(self) -> Executor:
        """The executor for a run that was interrupted before, perhaps because a cut crashed it."""
        return self
