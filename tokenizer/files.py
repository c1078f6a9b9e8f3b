"""Atomic and durable writes of files, checks of where output goes, and the folder of the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import platformdirs

from tokenizer.errors import InputError


def write_atomically(path: str | Path, data: bytes, temporary: Path | None = None) -> None:
    """Write a temporary file, sync it to disk, rename it to `path`, sync the folder.

    Args:
        path: the file to make or replace.
        data: its content.
        temporary: folder for the temporary file, on the same file system; None: the file's own folder.

    Raises:
        InputError: when `path` cannot be a file there: its folder does not exist, it is a folder or a device, the disk
            is full, and so on.
    """
    given, path = path, check_place(path)
    try:
        file = tempfile.NamedTemporaryFile(dir=temporary or path.parent, prefix=".unfinished.", delete=False)  # noqa: SIM115
        try:
            with file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)  # Windows does not rename an open file
        except BaseException:
            os.unlink(file.name)
            raise
    except OSError as error:
        raise InputError(f"{given}: cannot be written ({error.strerror})") from None
    sync_folder(path.parent)


def check_place(path: str | Path) -> Path:
    """The path at which a file of that name would be written; of a link, its target is replaced.

    Raises:
        InputError: the folder does not exist, or something other than a file is there.
    """
    place = Path(path).resolve()
    if not place.parent.is_dir():
        raise InputError(f"{path}: the folder {place.parent} does not exist; make it first")
    if place.exists() and not place.is_file():
        raise InputError(f"{path}: exists and is no regular file; give another name (or - for a pipe)")
    return place


def check_new_folder(folder: Path) -> None:
    """Raise InputError unless a command can make its output folder there: nothing exists, or an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there already; give a new or empty folder")


def state_of(paths: Iterable[Path]) -> str:
    """A name for files as they are now, in hex: it changes when any of them is written again. Reads none of them."""
    stated = []
    for path in paths:
        found = path.stat()
        stated.append((str(path.resolve()), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    return hashlib.sha256(repr(stated).encode()).hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the renames and deletions in `folder` durable. Does nothing on Windows, which cannot sync a folder."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder() -> Path:
    """Where files are kept that can be made or fetched again; absolute, and not made here.

    On Linux `focalstream` in $XDG_CACHE_HOME or ~/.cache; elsewhere in the system's own place for caches.

    Raises:
        InputError: there is no such place, because the user has no home (a container's user without a passwd entry).
    """
    if os.path.expanduser("~") == "~" and not os.environ.get("XDG_CACHE_HOME"):
        raise InputError(
            "no place for cached files: HOME is not set and this user has no home; set XDG_CACHE_HOME to a folder that "
            "can be written"
        )
    return platformdirs.user_cache_path("focalstream", appauthor=False).absolute()
