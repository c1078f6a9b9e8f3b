"""The shards as other libraries read them: Lhotse, webdataset and Hugging Face `datasets`."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pipelines.format.layout import Layout
from pipelines.format.shards import read_pairs
from pipelines.storage.folders import Folder

_PLAIN = re.compile(r"[A-Za-z0-9_./+@ -]*")

Reader = Callable[[Layout, list[int]], Iterator[tuple[str, np.ndarray]]]
"""Each (member id, codes uint16 [T]) of these shards, in order, as another library reads them."""


def lhotse_reader(layout: Layout, shards: list[int]) -> Iterator[tuple[str, np.ndarray]]:
    from lhotse import CutSet

    plain = _plainly_named([file(shard) for shard in shards for file in (layout.cuts_file, layout.codes_tar)])
    with plain as files:
        for cut in CutSet.from_shar(fields={"cuts": files[::2], "codes": files[1::2]}):
            yield cut.id, cut.load_codes()


def webdataset_reader(layout: Layout, shards: list[int]) -> Iterator[tuple[str, np.ndarray]]:
    import webdataset

    with _plainly_named([layout.codes_tar(shard) for shard in shards]) as tars:
        for sample in webdataset.WebDataset(tars, shardshuffle=False).decode():
            yield sample["__key__"], sample["npy"]


def datasets_reader(layout: Layout, shards: list[int]) -> Iterator[tuple[str, np.ndarray]]:
    from datasets import load_dataset

    with _plainly_named([layout.codes_tar(shard) for shard in shards]) as tars:
        # Streaming, because loading copies the corpus into a cache.
        for sample in load_dataset("webdataset", data_files=tars, split="train", streaming=True):
            yield sample["__key__"], np.asarray(sample["npy"], np.uint16)


@contextlib.contextmanager
def _plainly_named(files: list[Folder]) -> Iterator[list[str]]:
    """Absolute paths of files by names without a second meaning: these libraries take `#`, `?`, `::`, `{1,2}` and `[`
    in a name for parts of a URL or of a pattern. Where a path has such, links to the files stand for them."""
    paths = [str(file.absolute()) if isinstance(file, Path) else str(file) for file in files]
    if all(_PLAIN.fullmatch(path) for path in paths) or not all(isinstance(file, Path) for file in files):
        yield paths
        return
    with tempfile.TemporaryDirectory(prefix="focalstream-") as folder:
        links = [os.path.join(folder, os.path.basename(path)) for path in paths]
        for path, link in zip(paths, links, strict=True):
            os.symlink(path, link)
        yield links


def installed_readers() -> dict[str, Reader]:
    """Readers by the name of their library; `datasets` only where it is installed."""
    readers: dict[str, Reader] = {"lhotse": lhotse_reader, "webdataset": webdataset_reader}
    if importlib.util.find_spec("datasets") is not None:
        readers["datasets"] = datasets_reader
    return readers


def reader_agrees(layout: Layout, shards: list[int], name: str, reader: Reader) -> Iterator[str]:
    """At most one problem: where a reader first differs from ours, or that it fails."""
    ours = (pair for shard in shards for pair in read_pairs(layout.codes_tar(shard)))
    read = 0
    try:
        for ours_next, theirs in itertools.zip_longest(ours, reader(layout, shards)):
            if ours_next is None or theirs is None:
                yield f"shards: {name} reads {'more' if ours_next is None else 'fewer'} cuts than there are"
                return
            if ours_next.member != theirs[0] or not np.array_equal(ours_next.codes, theirs[1]):
                yield f"shards: {name} reads {theirs[0]} where {ours_next.member} is, or other codes for it"
                return
            read += 1
    except Exception as error:  # of another library: any error is the finding
        yield f"shards: {name} fails after {read} cuts ({type(error).__name__}: {error})"
