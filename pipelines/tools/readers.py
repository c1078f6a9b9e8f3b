"""The shards as other libraries see them: Lhotse, webdataset and Hugging Face `datasets`, each on its own code.

Every reader is a generator of (member id, codes uint16 [T]) over the given shards, in order. `verify` compares them
with what this project reads.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator

import numpy as np

from pipelines.format.layout import Layout

Reader = Callable[[Layout, list[int]], Iterator[tuple[str, np.ndarray]]]


def lhotse_reader(layout: Layout, shards: list[int]) -> Iterator[tuple[str, np.ndarray]]:
    from lhotse import CutSet

    fields = {
        "cuts": [str(layout.cuts_file(shard)) for shard in shards],
        "codes": [str(layout.codes_tar(shard)) for shard in shards],
    }
    for cut in CutSet.from_shar(fields=fields):
        yield cut.id, cut.load_codes()


def webdataset_reader(layout: Layout, shards: list[int]) -> Iterator[tuple[str, np.ndarray]]:
    import webdataset

    tars = [str(layout.codes_tar(shard)) for shard in shards]
    for sample in webdataset.WebDataset(tars, shardshuffle=False).decode():
        yield sample["__key__"], sample["npy"]


def datasets_reader(layout: Layout, shards: list[int]) -> Iterator[tuple[str, np.ndarray]]:
    from datasets import load_dataset

    # It takes names for glob patterns, and knows no way to escape brackets in them.
    tars = [re.sub(r"[*\[\]]", "?", str(layout.codes_tar(shard).absolute())) for shard in shards]
    # Streaming: loading would copy the corpus into a cache.
    for sample in load_dataset("webdataset", data_files=tars, split="train", streaming=True):
        yield sample["__key__"], np.asarray(sample["npy"], np.uint16)


def installed_readers() -> dict[str, Reader]:
    """Readers by the name of their library; `datasets` only where it is installed."""
    readers: dict[str, Reader] = {"lhotse": lhotse_reader, "webdataset": webdataset_reader}
    if importlib.util.find_spec("datasets") is not None:
        readers["datasets"] = datasets_reader
    return readers
