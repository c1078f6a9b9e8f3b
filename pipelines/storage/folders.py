"""Folders of datasets: on disk (`Path`), or behind a URL of fsspec (`RemotePath`, with the same methods).

Behind a URL a file appears whole by one upload or not at all; there are no renames and no locks, and folders exist only
in the names of files. The two are distinguished here, in `pipelines.storage.locks` and in `pipelines.bulk.ownership`.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pipelines.storage.places import is_url, objects_below, open_file_system
from pipelines.storage.retries import condition_failed, retried
from tokenizer.errors import InputError


class Status(NamedTuple):
    st_size: int  # bytes


@dataclass(frozen=True)
class RemotePath:
    """A file or folder behind a URL, with those methods of `Path` that datasets need. Every request is retried.

    Raises:
        FileNotFoundError, PermissionError: as `Path` would.
        InputError: there is no such protocol, no credentials, or the store keeps failing.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        return self.url.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.url.rstrip("/").rpartition("/")[0])

    def absolute(self) -> RemotePath:
        return self

    def exists(self) -> bool:
        return self._kind() is not None

    def is_file(self) -> bool:
        return self._kind() == "file"

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def _kind(self) -> str | None:
        # Not `files.exists`: in many file systems it says False for every error, throttling among them.
        try:
            return self._request("info")["type"]
        except FileNotFoundError:
            return None

    def stat(self) -> Status:
        return Status(int(self._request("info")["size"]))

    def iterdir(self) -> Iterator[RemotePath]:
        """Files and folders directly in it; none where there is no such folder."""
        for name in _names(self):
            yield self / name

    def open(self, mode: str = "rb") -> BinaryIO:
        """The whole file, in memory: no file of a dataset is larger than a shard."""
        assert mode == "rb"
        return io.BytesIO(self.read_bytes())

    def read_bytes(self) -> bytes:
        return self._request("cat_file")

    def read_small(self) -> bytes:
        """As `read_bytes`, by one request: s3fs asks for the size first, so as to read large files in pieces."""
        files, _ = open_file_system(self.url)
        how = inspect.signature(getattr(files, "_cat_file", files.cat_file)).parameters
        return self._request("cat_file", **({"max_concurrency": 1} if "max_concurrency" in how else {}))

    def read_text(self, encoding: str) -> str:
        return self.read_small().decode(encoding)

    def write_bytes(self, data: bytes) -> None:
        """Make or replace the file by one upload (a large file in parts; it appears when all of them are there)."""
        self._request("pipe_file", data)

    def create(self, data: bytes) -> bytes | None:
        """Make the file unless it exists. Returns what it holds: `data` if this call made it, None if it was there and
        is gone. Of several simultaneous calls one makes it, if the store keeps to conditions and the file system does
        not look first and write then. Calls must differ in `data`: a request that was repeated after its answer got
        lost finds the file that it made itself, and knows it by that."""
        try:
            self._request("pipe_file", data, mode="create")
            return data
        except FileExistsError:
            pass
        except InputError as error:
            if not condition_failed(error):
                raise
        try:
            return self.read_small()
        except FileNotFoundError:
            return None

    def looks_then_writes(self) -> bool:
        """Whether `create` is not one request with a condition but two requests, as fsspec's default is."""
        from fsspec.spec import AbstractFileSystem

        files, _ = open_file_system(self.url)
        return not files.async_impl and type(files).pipe_file is AbstractFileSystem.pipe_file

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._request("rm_file")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder exists when a file in it does."""

    def _request(self, method: str, *arguments: Any, **options: Any) -> Any:
        files, path = open_file_system(self.url)
        try:
            return retried(lambda: getattr(files, method)(path, *arguments, **options))
        except (FileNotFoundError, PermissionError, FileExistsError) as error:
            raise type(error)(error.errno or 0, error.strerror or str(error), self.url) from error
        except Exception as error:
            raise InputError(
                f"{self.url}: the store refuses or fails ({type(error).__name__}: {error}); fix that, and the same "
                "command again continues"
            ) from error


Folder = Path | RemotePath


def dataset_folder(text: str) -> Folder:
    """The argument of a command that reads or writes a dataset: a path or a URL."""
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return RemotePath(text.rstrip("/")) if is_url(text) else Path(text)


def local_folder(text: str) -> Path:
    """The argument of a command that needs the folder of a dataset on disk.

    Raises:
        ArgumentTypeError: it is a URL, of which `Path` would make a local folder named `s3:`.
    """
    folder = dataset_folder(text)
    if isinstance(folder, RemotePath):
        raise argparse.ArgumentTypeError(
            f"{text} is a URL; this command works on local folders only: name one, and copy the data from or to the URL"
        )
    return folder


def sizes_in(folder: Folder) -> dict[str, int]:
    """Bytes of each file directly in a folder, by name; none where there is no such folder. One request for all."""
    if isinstance(folder, RemotePath):
        return {name: size for name, (kind, size) in _names(folder).items() if kind == "file"}
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    return {}


def files_below(folder: RemotePath) -> list[str]:
    """Names of all files below a folder, relative to it, sorted."""
    try:
        return objects_below(folder.url)
    except FileNotFoundError:
        return []


def remove_tree(folder: Folder) -> None:
    """Remove a folder and everything in it, as far as that is possible."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    files, path = open_file_system(folder.url)
    names = files_below(folder)

    def remove() -> None:
        with contextlib.suppress(FileNotFoundError):  # another run removes them too
            files.rm([f"{path.rstrip('/')}/{name}" for name in names])

    try:
        if names:
            retried(remove)
    except Exception as error:
        raise InputError(f"{folder}: cannot be removed ({type(error).__name__}: {error})") from error


@contextlib.contextmanager
def on_disk(folder: Folder, names: Sequence[str]) -> Iterator[Path]:
    """A folder on disk with these files, as far as they exist: the folder itself, or for a URL a temporary one with
    copies, each downloaded once."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                data = (folder / name).read_bytes()
                copy = Path(temporary, name)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(data)
        yield Path(temporary)


def _names(folder: RemotePath) -> dict[str, tuple[str, int]]:
    """(type, bytes) of the entries directly in a folder, by name; sorted."""
    try:
        entries = folder._request("ls", detail=True)
    except FileNotFoundError:
        return {}
    found = {listed["name"].rstrip("/").rpartition("/")[2]: listed for listed in entries}
    return {name: (listed["type"], int(listed["size"] or 0)) for name, listed in sorted(found.items())}
