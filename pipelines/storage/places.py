"""Places of input: local paths, and URLs (`s3://`, `hf://`, `http://` ..., through fsspec), by one set of functions.

A place is text: an absolute path, or a URL. Local files never pass through fsspec.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from pipelines.storage.redirects import client_for, origin
from pipelines.storage.retries import retried
from tokenizer.errors import InputError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::.*)?://")  # "zip::s3://..." chains two


def is_url(place: str) -> bool:
    return _URL.match(place) is not None


def absolute(place: str) -> str:
    """The place by a name that is valid in every working directory."""
    return place if is_url(place) else os.path.abspath(place)


def is_absolute(place: str) -> bool:
    return is_url(place) or os.path.isabs(place)


def join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.normpath(os.path.join(folder, name))


def parent(place: str) -> str:
    return place.rstrip("/").rpartition("/")[0] if is_url(place) else os.path.dirname(place)


def name_of(place: str) -> str:
    return place.rstrip("/").rpartition("/")[2] if is_url(place) else os.path.basename(place)


def exists(place: str) -> bool:
    if not is_url(place):
        return os.path.exists(place)
    files, path = open_file_system(place)
    try:  # not `files.exists`: in many file systems it says False for every error, throttling among them
        retried(lambda: files.info(path))
    except FileNotFoundError:
        return False
    return True


def is_folder(place: str) -> bool:
    if not is_url(place):
        return os.path.isdir(place)
    files, path = open_file_system(place)
    return retried(lambda: files.isdir(path))


def size_of(place: str, hosts: tuple[str, ...] | None = None) -> int:
    """Bytes of a file; `hosts` as of `open_file_system`. Raises FileNotFoundError."""
    if not is_url(place):
        return os.stat(place).st_size
    files, path = open_file_system(place, hosts)
    return int(retried(lambda: files.size(path), origin(place)))


def version_of(place: str) -> str:
    """Size and time of a file, or what its store calls its version; "" where only its size is known."""
    if not is_url(place):
        status = os.stat(place)
        return f"{status.st_size} {status.st_mtime_ns}"
    files, path = open_file_system(place)
    return _version(retried(lambda: files.info(path)))


def _version(info: dict[str, Any]) -> str:
    versions = (info.get(name) for name in ("ETag", "etag", "md5Hash", "generation", "LastModified", "mtime"))
    version = next((str(value) for value in versions if value), "")
    return version and f"{info['size']} {version}"


def matches(pattern: str) -> list[str]:
    """Absolute places that a glob (`**` for any depth) matches, sorted."""
    if not is_url(pattern):
        return sorted(os.path.abspath(found) for found in glob.glob(pattern, recursive=True))
    files, path = open_file_system(pattern)
    return sorted(files.unstrip_protocol(found) for found in retried(lambda: files.glob(path)))


def names_in(folder: str) -> list[str]:
    """Names of the files (not the folders) directly in a folder, sorted."""
    if not is_url(folder):
        return sorted(name for name in os.listdir(folder) if os.path.isfile(os.path.join(folder, name)))
    files, path = open_file_system(folder)
    entries = retried(lambda: files.ls(path, detail=True))
    return sorted(name_of(listed["name"]) for listed in entries if listed["type"] == "file")


def versions_in(folder: str) -> dict[str, tuple[int, str]]:
    """Bytes and `version_of` of every file directly in a folder, by name, sorted: of a store by its listing alone."""
    if not is_url(folder):
        places = ((name, join(folder, name)) for name in names_in(folder))
        return {name: (size_of(place), version_of(place)) for name, place in places}
    files, path = open_file_system(folder)
    entries = retried(lambda: files.ls(path, detail=True))
    found = {name_of(listed["name"]): listed for listed in entries if listed["type"] == "file"}
    return {name: (int(found[name]["size"] or 0), _version(found[name])) for name in sorted(found)}


def files_below(folder: str) -> Iterator[str]:
    """Paths of the files below a folder, relative to it, with `/`; in a fixed order. Hidden ones are left out.

    Raises:
        OSError: a folder in it may not be read.
    """
    if is_url(folder):
        names = objects_below(folder)
        yield from (name for name in names if not any(part.startswith(".") for part in name.split("/")))
        return
    for root, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = "" if root == folder else os.path.relpath(root, folder).replace(os.sep, "/") + "/"
        yield from (below + name for name in sorted(names) if not name.startswith("."))


def objects_below(url: str) -> list[str]:
    """Names of all files below a folder behind a URL, relative to it, sorted; hidden ones too."""
    files, path = open_file_system(url)
    root = path.rstrip("/") + "/"
    # s3fs names the folder itself where it was empty a moment ago, and another process has just written into it.
    found = (name for name in retried(lambda: files.find(path)) if name.rstrip("/") + "/" != root)
    return sorted(name.removeprefix(root) for name in found)


def _refuse(error: OSError) -> None:
    """For `os.walk`, which otherwise skips folders that it may not read."""
    raise error


def open_place(place: str) -> BinaryIO:
    """A file to read and to seek in. Raises FileNotFoundError and other errors of opening."""
    if not is_url(place):
        return open(place, "rb")
    files, path = open_file_system(place)
    return cast(BinaryIO, retried(lambda: files.open(path, "rb"), origin(place)))


def open_file_system(url: str, hosts: tuple[str, ...] | None = None) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. `hosts`: where redirects of HTTP may lead; None: anywhere.

    Raises:
        InputError: there is no such protocol, or its package is not installed.
    """
    import fsspec

    try:
        # Listings are read again every time, because other processes may write there.
        http = url.rpartition("::")[2].partition("://")[0].lower() in ("http", "https")
        guarded: dict[str, Any] = {"get_client": client_for(hosts)} if http and hosts is not None else {}
        if "::" in url:  # of a chain, options stand under the name of their part
            guarded = {url.rpartition("::")[2].partition("://")[0]: guarded} if guarded else {}
        return fsspec.core.url_to_fs(url, use_listings_cache=False, **guarded)
    except (ImportError, ValueError) as error:
        raise InputError(f"{url}: cannot be read ({error}); install what it needs or give a local path") from error
