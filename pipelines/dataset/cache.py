"""A dataset behind a URL, and the local folder that its files are downloaded to when they are needed.

The folder in the cache is laid out as the dataset itself. It is named after the URL and the content of `dataset.json`,
so another dataset at the same URL has a folder of its own. Each file appears whole, with the checksum that
`dataset.json` gives it, or not at all; so any number of processes may share a cache.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipelines.dataset.mapped_shards import mappable
from pipelines.format.description import ShardEntry
from pipelines.format.layout import Layout
from pipelines.storage.folders import Folder, RemotePath
from pipelines.storage.stable_bytes import StoredFile, stored_file
from tokenizer.errors import InputError
from tokenizer.files import cache_folder, write_atomically

DOWNLOADS = 16  # at a time


class MissingFile(InputError):
    """A file that `dataset.json` names is not there."""


class CachedDataset:
    """The local folder of a remote dataset. Opening downloads `dataset.json` and nothing else.

    Args:
        remote: the dataset's folder.
        cache: a local folder, made when missing; None: the user's.

    Attributes:
        layout: the local folder.

    Raises:
        InputError: the URL cannot be read.
    """

    def __init__(self, remote: RemotePath, cache: Path | None) -> None:
        self._remote = remote
        try:
            content = (remote / "dataset.json").read_bytes()
        except FileNotFoundError:
            raise InputError(
                f"{remote}: no dataset.json there; expected a dataset that `focalstream tokenize` has finished"
            ) from None
        identity = hashlib.sha256(remote.url.encode() + b"\0" + content).hexdigest()
        name = re.sub(r"[^A-Za-z0-9_-]", "_", remote.name)[:60]
        self.layout = Layout((cache or cache_folder() / "datasets") / f"{name}-{identity[:16]}")
        self.layout.out.mkdir(parents=True, exist_ok=True)
        copy = mappable(self.layout.dataset)
        if not copy.exists() or copy.read_bytes() != content:
            write_atomically(copy, content)

    def fetch(self, paths: Iterable[Folder], shards: Iterable[ShardEntry]) -> None:
        """Download the files at local `paths` that are missing or have the wrong size, several at a time.

        Args:
            paths: in the folder of `layout`.
            shards: entries of `dataset.json` that the files belong to.

        Raises:
            MissingFile: a file is not behind the URL.
            InputError: a file cannot be read, or is not what `dataset.json` says.
        """
        known = {name: stored for entry in shards for name, stored in entry.files.items()}
        sizes = {self.layout.name(path): path.stat().st_size if path.exists() else None for path in paths}
        names = [name for name, size in sizes.items() if size != known[name].bytes]
        with ThreadPoolExecutor(DOWNLOADS) as threads:
            list(threads.map(lambda name: self._bring(name, known[name]), names))

    def _bring(self, name: str, expected: StoredFile) -> None:
        place, path = self._remote / name, mappable(self.layout.out / name)
        try:
            data = place.read_bytes()
        except FileNotFoundError:
            raise MissingFile(
                f"{place}: is not there, but dataset.json names it; `focalstream verify {self._remote}` lists what is "
                "wrong"
            ) from None
        if stored_file(data) != expected:
            raise InputError(
                f"{place}: {len(data)} bytes that are not those of dataset.json ({expected.bytes}, by sha256): "
                "damaged there: `focalstream verify` and `repair` the dataset it was copied from, and copy again"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
