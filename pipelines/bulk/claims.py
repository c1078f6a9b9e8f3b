"""Who does a group of shards that share batches, where several parts of a run work at the same time.

A part that has ended its own shards takes over those that slower parts have not begun. So each group is claimed before
it is begun, by its owner too, and the claim is held until all its receipts are there:

    OUT/work/claims/000012/claim

It is a lock as those of `pipelines.bulk.ownership` are: whoever dies lets go of it, at once on disk, and behind a URL
after a minute of silence. Only then is the group done again, so no two parts ever write the same shard.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipelines.bulk.ownership import Part, begun_parts, dealt_to
from pipelines.bulk.tasks import Task
from pipelines.format.layout import Layout
from pipelines.format.ledger import shards_with_receipts
from pipelines.storage.folders import Folder, RemotePath
from pipelines.storage.leases import LOOKS_AT_A_TIME, StillHeld
from pipelines.storage.locks import held, looks_free


class Alone:
    """Stands in for `Claims` in a run that shares its shards with nobody."""

    def take(self, tasks: Sequence[Task]) -> Sequence[Task]:
        return tasks

    def left_by_others(self, shards: int, task: Callable[[int], Task]) -> list[Task]:
        return []

    def done(self, shard: int) -> None:
        pass

    def check(self) -> None:
        pass


class Claims:
    """The claims of one part.

    Args:
        batch_shards: how many shards share batches: a group.
    """

    def __init__(self, layout: Layout, part: Part, batch_shards: int) -> None:
        self._layout, self._part, self._size = layout, part, batch_shards
        self._changed, self._closed = threading.Lock(), False
        self._claims: dict[int, contextlib.ExitStack] = {}
        self._checks: dict[int, StillHeld] = {}
        self._undone: dict[int, set[int]] = {}

    def take(self, tasks: Sequence[Task], patient: bool = False) -> list[Task]:
        """Claim a group, or find that it is claimed. Returns those of its tasks that are still to be done; none where
        another part does them.

        Args:
            tasks: of one group.
            patient: watch a claim behind a URL for up to a minute, in case its holder is dead.
        """
        group = tasks[0].shard // self._size
        with self._changed:
            if group in self._claims:
                return list(tasks)
        path = self._path(group)
        if not patient and not looks_free(path):
            return []
        with contextlib.ExitStack() as stack, contextlib.suppress(BlockingIOError):
            still_held = stack.enter_context(held(path, wait=False))
            left = self._left(tasks)
            with self._changed:
                if left and not self._closed:
                    self._claims[group], self._checks[group] = stack.pop_all(), still_held
                    self._undone[group] = {task.shard for task in left}
                    return left
        return []

    def left_by_others(self, shards: int, task: Callable[[int], Task]) -> list[Task]:
        """Tasks of shards without receipt that nobody does, of this part and of those that have been begun; the last
        shards first, because their owners begin at the other end. Behind a URL it may take a minute to find some.

        Args:
            shards: of the whole run.
            task: of a shard.
        """
        if self._layout.dataset.exists():
            return []
        done = shards_with_receipts(self._layout)
        begun = begun_parts(self._layout, self._part)
        numbers = (group for part in begun for group in dealt_to(part, -(-shards // self._size)))
        groups = []
        for group in sorted(numbers, reverse=True):
            members = range(group * self._size, min((group + 1) * self._size, shards))
            if left := [task(shard) for shard in members if shard not in done]:
                groups.append(left)
        if any(looks_free(self._path(left[0].shard // self._size)) for left in groups):
            return [task for left in groups for task in left]
        if isinstance(self._layout.work, RemotePath):  # on disk whoever dies lets go at once
            with ThreadPoolExecutor(LOOKS_AT_A_TIME) as pool:
                found = pool.map(lambda left: self.take(left, patient=True), groups)
                return [task for left in found for task in left]
        return []

    def done(self, shard: int) -> None:
        """A shard has its receipt."""
        group = shard // self._size
        with self._changed:
            self._undone[group].discard(shard)
            if self._undone[group]:
                return
            claim = self._claims.pop(group)
            del self._checks[group], self._undone[group]
        claim.close()

    def check(self) -> None:
        """As `StillHeld`, of all claims."""
        with self._changed:
            checks = list(self._checks.values())
        for still_held in checks:
            still_held()

    def close(self) -> None:
        """Let go of all, and claim no more: a thread that reads ahead may still be about to."""
        with self._changed:
            self._closed, claims, self._claims = True, self._claims, {}
        for claim in claims.values():
            claim.close()

    def _left(self, tasks: Sequence[Task]) -> list[Task]:
        """Those without receipt. Receipts go when the dataset is finished, so that is looked at last."""
        done = shards_with_receipts(self._layout, [task.shard for task in tasks])
        return [] if self._layout.dataset.exists() else [task for task in tasks if task.shard not in done]

    def _path(self, group: int) -> Folder:
        return self._layout.work / "claims" / f"{group:06d}" / "claim"
