"""Which part does which group of shards, when several parts of a run work at the same time.

A group is the shards that share batches. A part that has done its own shards takes over those that slower parts have
not begun. So every part claims a group before it begins it, one of its own too, and holds the claim until all receipts
of the group are there:

    OUT/work/claims/000012/claim

A claim is a lock, like those of `pipelines.bulk.ownership`. When its holder dies it becomes free: at once on disk, and
after a minute of silence behind a URL. Only then does another part do the group, so no two parts write the same shard.
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
    """Takes the place of `Claims` in a run that does all shards by itself."""

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
        """Claim a group. Returns those of its tasks that are still to be done; none if another part has claimed it.

        Args:
            tasks: of one group.
            patient: if a claim behind a URL is held, watch it for up to a minute, because its holder may be dead.
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
        """Tasks of shards that have no receipt and that no part is doing. The last shards come first, because their
        owners begin with the first ones. Only shards of parts that have been started count, this one included. Behind a
        URL it may take a minute to find some.

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
        if isinstance(self._layout.work, RemotePath):  # on disk a dead part holds nothing
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
        """Raise InputError if another part may have taken any of the claims; see `StillHeld`."""
        with self._changed:
            checks = list(self._checks.values())
        for still_held in checks:
            still_held()

    def close(self) -> None:
        """Release all claims and make no more, because a thread that reads ahead may still try to."""
        with self._changed:
            self._closed, claims, self._claims = True, self._claims, {}
        for claim in claims.values():
            claim.close()

    def _left(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks without receipt. `dataset.json` is checked last, because finishing it removes all receipts."""
        done = shards_with_receipts(self._layout, [task.shard for task in tasks])
        return [] if self._layout.dataset.exists() else [task for task in tasks if task.shard not in done]

    def _path(self, group: int) -> Folder:
        return self._layout.work / "claims" / f"{group:06d}" / "claim"
