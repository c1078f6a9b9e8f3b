"""Which folders a run may write to, and who else may meanwhile: nobody, or the other parts of the same run.

A run deletes what it made, so it first makes sure that all of it is its own.

    OUT/work/lock              held by a run that does all shards
    OUT/work/parts/3-of-16     held by one that does a part of them
    OUT/work/plan.lock         held while the plan is made, and finish.lock while dataset.json is

On disk these are locks of the operating system (flock), which end with the process however it ends; behind a URL they
are leases.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.bulk.part import Part
from pipelines.bulk.plan import has_plan
from pipelines.format.layout import Layout
from pipelines.storage.folders import Folder, RemotePath, files_below, remove_tree, sizes_in
from pipelines.storage.locks import first_alive, lease
from tokenizer.errors import InputError

# Paths below work/, folders with a slash at the end. Names in tmp/ are those of tempfile.
_MADE_BY_RUNS = re.compile(
    r"lock|plan\.lock|finish\.lock|parts/|parts/\d+-of-\d+|plan\.json|plan/|plan/\d{6,}\.jsonl\.gz|"
    r"receipts/|receipts/\d{6,}\.json|tmp/|tmp/\..+\.[a-z0-9_]{8}"
)

StillOurs = Callable[[], None]
"""Raises InputError when somebody else has taken what a run holds, which only a lease allows."""


def refuse_strange_folder(layout: Layout) -> None:
    """Raise InputError unless OUT is free or of an earlier run: absent, empty, with a dataset.json or its copy, or
    with the work/ of an unfinished run. A work/ with any other file in it is refused in every case, for runs delete
    that folder.

    Nothing is made or changed.
    """
    if layout.out.exists() and not layout.out.is_dir():
        raise InputError(f"{layout.out} is a file; expected a folder to write the dataset to")
    strange = next(_strange(layout.work), None)
    if strange is not None:
        raise InputError(f"{strange} was not made by focalstream, which keeps its own files there; give another OUT")
    known = (layout.dataset, layout.dataset_copy, _lock(layout, None), _parts(layout))
    if not layout.out.exists() or has_plan(layout) or any(path.exists() for path in known):
        return
    found = sorted(path.name for path in layout.out.iterdir() if path != layout.work or any(path.iterdir()))
    if found:
        raise InputError(
            f"{layout.out} is not empty ({found[0]} is in it) and holds no run of focalstream; give an OUT that is "
            "new or empty"
        )


@contextlib.contextmanager
def only_run(layout: Layout, part: Part | None = None) -> Iterator[StillOurs]:
    """Hold OUT, or a part of it, against every run that would do the same shards. `work/` leaves with a run that came
    to its end or never had a plan.

    Raises:
        InputError: OUT is somebody else's, or such a run is writing there.
    """
    refuse_strange_folder(layout)
    with contextlib.ExitStack() as stack:
        try:
            still_ours = stack.enter_context(_held(_lock(layout, part), wait=False))
            _refuse_others(layout, part)
        except BlockingIOError as error:
            raise InputError(
                f"{layout.out}: another run is writing there ({error}); wait for it or give another OUT"
            ) from None
        try:
            yield still_ours
        finally:
            with contextlib.suppress(InputError):  # the store is away, or what is there is another run's now
                still_ours()
                if layout.dataset.exists() or (part is None and not has_plan(layout)):
                    remove_tree(layout.work)
            if isinstance(layout.out, Path):
                _remove_empty(layout, part)


@contextlib.contextmanager
def once(layout: Layout, what: str) -> Iterator[None]:
    """One part at a time does this, "plan" or "finish", and the others wait for it."""
    with _held(layout.work / f"{what}.lock", wait=True):
        yield


def _lock(layout: Layout, part: Part | None) -> Folder:
    return layout.work / "lock" if part is None else _parts(layout) / f"{part.number}-of-{part.of}"


def _parts(layout: Layout) -> Folder:
    return layout.work / "parts"


def _refuse_others(layout: Layout, part: Part | None) -> None:
    """Raise BlockingIOError where a run is alive that may do the same shards: all shards, or of another number of
    parts. Who held its own lock before it looked cannot be missed by both of two that begin together."""
    others = [
        _parts(layout) / name
        for name in sizes_in(_parts(layout))
        if part is None or not name.endswith(f"-of-{part.of}")
    ]
    if part is not None:
        others.append(_lock(layout, None))
    holder = first_alive([path for path in others if isinstance(path, RemotePath)])
    held = [path.name for path in others if isinstance(path, Path) and _is_flocked(path)]
    if holder or held:
        raise BlockingIOError(holder or f"it holds {held[0]}")


def _held(path: Folder, wait: bool) -> contextlib.AbstractContextManager[StillOurs]:
    """Hold a lock or a lease. Raises BlockingIOError where somebody else does and `wait` is not set."""
    return lease(path, wait) if isinstance(path, RemotePath) else flocked(path, wait)


@contextlib.contextmanager
def flocked(path: Path, wait: bool) -> Iterator[StillOurs]:
    """Hold a lock file, which the system lets go when the process ends, however it does.

    Raises:
        BlockingIOError: somebody else holds it, and `wait` is not set.
        InputError: the file system has no locks.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, "w")  # noqa: SIM115
        except FileNotFoundError:  # a run that came to its end took the folder away just now
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        except BlockingIOError:
            file.close()
            raise BlockingIOError(f"it holds {path.name}") from None
        except OSError as error:
            file.close()
            raise InputError(
                f"{path}: cannot be locked ({error.strerror}); mount the file system with locks (flock) or give an OUT "
                "on another one"
            ) from error
        file.close()  # of a file that was removed meanwhile
    with file:
        yield lambda: None


def _is_flocked(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _remove_empty(layout: Layout, part: Part | None) -> None:
    """Leave nothing of a run that was refused, or that has no share in what is there."""
    assert isinstance(layout.out, Path) and isinstance(layout.work, Path)
    plan_lock = layout.work / "plan.lock"
    if layout.work.exists() and not has_plan(layout):
        _lock(layout, part).unlink(missing_ok=True)
        with contextlib.suppress(BlockingIOError), flocked(plan_lock, wait=False):  # else another part is planning
            plan_lock.unlink()
    for folder in (layout.work / "parts", layout.work, layout.out):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _strange(work: Folder) -> Iterator[Folder]:
    """What in work/ no run has made. Another run may be adding and removing files meanwhile."""
    if isinstance(work, RemotePath):
        yield from (work / name for name in files_below(work) if not _MADE_BY_RUNS.fullmatch(name))
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
            if not _MADE_BY_RUNS.fullmatch(below) or path.is_symlink():
                yield path
