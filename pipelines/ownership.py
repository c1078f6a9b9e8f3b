"""Which folders a run may write to, one run at a time.

A run deletes what it made, so it first makes sure that all of it is its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipelines.layout import Layout
from pipelines.plan import has_plan
from tokenizer.errors import InputError

# Paths below work/, folders with a slash at the end. Names in tmp/ are those of tempfile.
_MADE_BY_RUNS = re.compile(
    r"lock|plan\.json|plan/|plan/\d{6,}\.jsonl\.gz|receipts/|receipts/\d{6,}\.json|tmp/|tmp/\..+\.[a-z0-9_]{8}"
)


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
    known = (layout.dataset, layout.dataset_copy, layout.work / "lock")
    if not layout.out.exists() or any(path.exists() for path in known):
        return
    found = sorted(path.name for path in layout.out.iterdir() if path != layout.work or any(path.iterdir()))
    if found:
        raise InputError(
            f"{layout.out} is not empty ({found[0]} is in it) and holds no run of focalstream; give an OUT that is "
            "new or empty"
        )


@contextlib.contextmanager
def only_run(layout: Layout) -> Iterator[None]:
    """Hold OUT's lock; the system lets go of it however the process ends. `work/` leaves with a run that came to its
    end or never had a plan.

    Raises:
        InputError: OUT is somebody else's, or another run is writing there.
    """
    refuse_strange_folder(layout)
    layout.work.mkdir(parents=True, exist_ok=True)
    with open(layout.work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{layout.out}: another run is writing there; wait for it or give another OUT") from None
        try:
            yield
        finally:
            if layout.dataset.exists() or not has_plan(layout):
                shutil.rmtree(layout.work)
                with contextlib.suppress(OSError):
                    layout.out.rmdir()  # only an empty one: nothing half-written stays of a run that was refused


def _strange(work: Path) -> Iterator[Path]:
    """What in work/ no run has made. Another run may be adding and removing files meanwhile."""
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
