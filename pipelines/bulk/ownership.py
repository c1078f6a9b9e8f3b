"""Which folder a run may write to, and which part of its shards. No two runs write the same shard.

A run deletes files that earlier runs made, so it first checks that everything in OUT is ours.

    OUT/work/lock              held by a run that does all shards
    OUT/work/parts/3-of-16     held by a run that does a part of them
    OUT/work/claims/           see `pipelines.bulk.claims`
    OUT/work/plan.lock         held while the plan is made; finish.lock while dataset.json is written

On disk these are locks of the operating system, behind a URL they are leases (`lock.1`, `lock.2`, ... too); see
`pipelines.storage.locks` and `pipelines.storage.leases`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.bulk.stored_plan import has_plan
from pipelines.format.layout import Layout
from pipelines.storage.folders import Folder, RemotePath, files_below, remove_tree, sizes_in
from pipelines.storage.leases import NotNeeded, StillHeld, first_alive, lease_of
from pipelines.storage.locks import flocked, held, is_flocked
from tokenizer.errors import InputError

# Paths below work/, folders with a slash at the end. Names in tmp/ are those of tempfile.
_MADE_BY_RUNS = re.compile(
    r"(lock|plan\.lock|finish\.lock|parts/\d+-of-\d+)(\.\d+)?|parts/|plan\.json|plan/|plan/\d{6,}\.jsonl\.gz|"
    r"receipts/|receipts/\d{6,}\.json|claims/|claims/\d{6,}/|claims/\d{6,}/claim(\.\d+)?|tmp/|tmp/\..+\.[a-z0-9_]{8}"
)

# What file servers and desktops leave in any folder: a file that is removed while open (NFS), settings, thumbnails.
_OF_SYSTEMS = re.compile(r"\.nfs[0-9a-f]{8,}|\.DS_Store|\._.+|\.fuse_hidden[0-9a-f]+|Thumbs\.db|desktop\.ini")


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `of` parts: every `of`-th shard, or group of shards that share batches, so each has
    cuts from all over the corpus."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def dealt_to(part: Part | None, count: int) -> range:
    """Which of `count` things, by number, a part has; all of them where there are no parts."""
    return range(count) if part is None else range(part.number - 1, count, part.of)


def begun_parts(layout: Layout, part: Part) -> list[Part]:
    """The parts of a run that have been begun, whether or not they are alive; this one too."""
    names = {lease_of(name) for name in sizes_in(_parts(layout))}
    return [other for number in range(1, part.of + 1) if _part_name(other := Part(number, part.of)) in names]


def refuse_strange_folder(layout: Layout) -> None:
    """Raise InputError unless OUT may be written to. Nothing is made or changed.

    OUT may be absent or empty, or hold a dataset.json (or its copy), or the work/ of an unfinished run. A work/ that
    holds any other file is always refused, because runs delete that folder.
    """
    if layout.out.exists() and not layout.out.is_dir():
        raise InputError(f"{layout.out} is a file; expected a folder to write the dataset to")
    strange = next(_strange(layout.work), None)
    if strange is not None:
        raise InputError(f"{strange} was not made by focalstream, which keeps its own files there; give another OUT")
    known = (layout.dataset, layout.dataset_copy, _lock(layout, None), _parts(layout))
    if not layout.out.exists() or has_plan(layout) or any(path.exists() for path in known):
        return
    found = sorted(path.name for path in layout.out.iterdir() if path != layout.work and _holds_something(path))
    if found:
        raise InputError(
            f"{layout.out} is not empty ({found[0]} is in it) and holds no run of focalstream; give an OUT that is "
            "new or empty"
        )


def _holds_something(path: Folder) -> bool:
    """Whether it is a file, or a folder with anything in it, of a user's."""
    if _OF_SYSTEMS.fullmatch(path.name):
        return False
    return not path.is_dir() or any(_holds_something(below) for below in path.iterdir())


@contextlib.contextmanager
def only_run(layout: Layout, part: Part | None = None) -> Iterator[StillHeld]:
    """Hold OUT, or a part of it, so that no other run can do the same shards. At the end `work/` is removed if the
    dataset is finished, or if there is no plan.

    Raises:
        InputError: OUT holds files of others, or another run is writing there.
    """
    refuse_strange_folder(layout)
    ours = False

    def remove_work() -> None:
        if not ours:
            return
        with contextlib.suppress(InputError):  # the store does not answer
            if part is None:
                over = layout.dataset.exists() or not has_plan(layout)
            else:  # a run that tries failed cuts again may have begun since another part finished the dataset
                over = layout.dataset.exists() and not _alive([_lock(layout, None)])
            if over:
                remove_tree(layout.work)
        if isinstance(layout.out, Path):
            _remove_empty(layout, part)

    with contextlib.ExitStack() as stack:
        try:
            still_held = stack.enter_context(held(_lock(layout, part), wait=False, at_end=remove_work))
            _refuse_others(layout, part)
        except BlockingIOError as error:
            raise InputError(
                f"{layout.out}: another run is writing there ({error}); wait for it or give another OUT"
            ) from None
        ours = True
        yield still_held


@contextlib.contextmanager
def once(layout: Layout, what: str, done: Callable[[], bool]) -> Iterator[StillHeld]:
    """Let one part at a time do this ("plan" or "finish"). The others wait until it is `done`, or until it is their
    turn."""
    still_held: StillHeld = lambda: None  # noqa: E731
    with contextlib.ExitStack() as stack:
        if not done():
            with contextlib.suppress(NotNeeded):
                still_held = stack.enter_context(held(layout.work / f"{what}.lock", wait=True, done=done))
        yield still_held


def _lock(layout: Layout, part: Part | None) -> Folder:
    return layout.work / "lock" if part is None else _parts(layout) / _part_name(part)


def _part_name(part: Part) -> str:
    return f"{part.number}-of-{part.of}"


def _parts(layout: Layout) -> Folder:
    return layout.work / "parts"


def _refuse_others(layout: Layout, part: Part | None) -> None:
    """Raise BlockingIOError where a run is alive that may do the same shards: one of all shards, or of another number
    of parts. Each run takes its own lock before it checks the others, so two runs that start together cannot both
    miss each other."""
    others = [
        _parts(layout) / name
        for name in sorted({lease_of(name) for name in sizes_in(_parts(layout))})
        if part is None or not name.endswith(f"-of-{part.of}")
    ]
    if part is not None:
        others.append(_lock(layout, None))
    if holder := _alive(others):
        raise BlockingIOError(holder)


def _alive(paths: Sequence[Folder]) -> str | None:
    """A holder of one of these locks, in words; None where all are free."""
    for path in paths:
        if isinstance(path, Path) and is_flocked(path):
            return f"it holds {path.name}"
    return first_alive([path for path in paths if isinstance(path, RemotePath)])


def _remove_empty(layout: Layout, part: Part | None) -> None:
    """Remove what a run that was refused, or a part that has no shards, has made."""
    assert isinstance(layout.out, Path) and isinstance(layout.work, Path)
    plan_lock = layout.work / "plan.lock"
    if layout.work.exists() and not has_plan(layout):
        with contextlib.suppress(PermissionError):  # on Windows, where it is removed when it is released
            _lock(layout, part).unlink(missing_ok=True)
        with contextlib.suppress(BlockingIOError, PermissionError), flocked(plan_lock, wait=False):  # else one plans
            plan_lock.unlink()
    for folder in (layout.work / "parts", layout.work, layout.out):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _strange(work: Folder) -> Iterator[Folder]:
    """Files in work/ that no run made. Another run may be adding and removing files at the same time."""
    if isinstance(work, RemotePath):
        yield from (work / name for name in files_below(work) if not _is_known(name))
        return
    if work.is_symlink() or (work.exists() and not work.is_dir()):
        yield work
    with contextlib.suppress(FileNotFoundError):
        if (work / "lock").stat().st_size:  # ours is always empty
            yield work / "lock"
    for root, folders, files in os.walk(work):
        for name in [*(f"{folder}/" for folder in folders), *files]:
            path = Path(root, name)
            below = path.relative_to(work).as_posix() + ("/" if name.endswith("/") else "")
            if not _is_known(below) or path.is_symlink():
                yield path


def _is_known(below: str) -> bool:
    """Whether a path below work/ is one of ours, or one that a system makes by itself."""
    return bool(_MADE_BY_RUNS.fullmatch(below) or _OF_SYSTEMS.fullmatch(below.rstrip("/").rpartition("/")[2]))
