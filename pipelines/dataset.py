"""Random access to tokenized datasets: `TokenDataset`, what the language model's loader reads.

Opening reads `dataset.json` and the per-shard index (16 bytes a cut); codes are read from the memory-mapped tars, so a
corpus of any size opens in bounded memory.
"""

from __future__ import annotations

import gzip
import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.folders import Folder, RemotePath, dataset_folder, local_copy
from pipelines.layout import FORMAT, FORMAT_VERSION, INDEX_DTYPE, Layout
from tokenizer.errors import InputError

MAPPED_TARS = 256  # open memory maps at a time; Linux allows a process 65,530
PARSED_SHARDS = 4  # shards whose cut ids are held at a time


class TokenDataset:
    """One or several tokenized datasets as one sequence of cuts, in shard order.

    Args:
        out: the folder or URL written by `focalstream tokenize`, or several; several must share the codec
            fingerprint. Shards behind a URL are copied into the user's cache as they are read.

    Attributes:
        lengths: int64 [N], tokens of each cut.
        fingerprint: identity of the codec that wrote the tokens (hex sha256).
        codebook_size: tokens are in [0, codebook_size).
        token_rate: tokens per second of audio.
        codec: the codec's entry in `dataset.json` (name, fingerprint, rates).

    Raises:
        InputError: a folder is no finished dataset, is damaged, or was written by another codec than the first.
    """

    def __init__(self, out: str | Folder | Sequence[str | Folder]) -> None:
        folders = [out] if isinstance(out, (str, Path, RemotePath)) else list(out)
        if not folders:
            raise InputError("no tokenized dataset was given: expected at least one folder")
        self._shards: list[tuple[Layout, dict[str, Any]]] = []
        offsets, lengths, counts = [], [], []
        self.codec: dict[str, Any] = {}
        for folder in folders:
            layout = Layout(dataset_folder(str(folder)))
            description = read_description(layout)
            self._adopt_codec(layout, description["codec"], folders[0])
            for shard in description["shards"]:
                rows = _read_index(layout, shard)
                offsets.append(rows["offset"].astype(np.int64))
                lengths.append(rows["tokens"].astype(np.int64))
                counts.append(len(rows))
                self._shards.append((layout, shard))
        empty = np.zeros(0, np.int64)
        self.lengths: np.ndarray = np.concatenate([empty, *lengths])
        self._offsets = np.concatenate([empty, *offsets])
        self._first_cut = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)  # of each shard, then the total
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()
        self._ids: OrderedDict[int, list[str]] = OrderedDict()

    def _adopt_codec(self, layout: Layout, codec: dict[str, Any], first: str | Folder) -> None:
        if self.codec and codec["fingerprint"] != self.codec["fingerprint"]:
            raise InputError(
                f"{layout.out} was tokenized by codec {codec['fingerprint'][:12]} ({codec['name']}), {first} by "
                f"{self.codec['fingerprint'][:12]} ({self.codec['name']}): their tokens mean different sounds; "
                "tokenize both with the same codec"
            )
        self.codec = self.codec or codec

    @property
    def fingerprint(self) -> str:
        return self.codec["fingerprint"]

    @property
    def codebook_size(self) -> int:
        return self.codec["codebook_size"]

    @property
    def token_rate(self) -> float:
        return self.codec["token_rate"]

    def __len__(self) -> int:
        return len(self.lengths)

    def codes(self, i: int) -> np.ndarray:
        """The tokens of cut `i`: uint16 [T], a copy."""
        shard, _ = self._locate(i)
        begin = int(self._offsets[i])
        raw = self._tar(shard)[begin : begin + 2 * int(self.lengths[i])]
        return np.frombuffer(raw.tobytes(), dtype="<u2").astype(np.uint16, copy=False)

    def cut_id(self, i: int) -> str:
        """The id cut `i` had in the manifest it was tokenized from."""
        shard, row = self._locate(i)
        ids = _recent(self._ids, shard, PARSED_SHARDS, self._read_ids)
        return ids[row]

    def _locate(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"cut {i} of a dataset of {len(self)} cuts")
        shard = int(np.searchsorted(self._first_cut, i, side="right")) - 1
        return shard, i - int(self._first_cut[shard])

    def _tar(self, shard: int) -> np.ndarray:
        return _recent(self._maps, shard, MAPPED_TARS, self._map_tar)

    def _map_tar(self, shard: int) -> np.ndarray:
        layout, entry = self._shards[shard]
        path = layout.codes_tar(entry["shard"])
        recorded = entry["files"][f"shards/{path.name}"]
        expected, path = recorded["bytes"], local_copy(path, recorded["sha256"])
        found = path.stat().st_size if path.exists() else 0
        if found != expected:
            raise InputError(
                f"{path}: {found} bytes, but dataset.json says {expected}: it is damaged or half-copied; "
                f"`focalstream verify {layout.out}` lists what is wrong"
            )
        return np.memmap(path, dtype=np.uint8, mode="r")

    def _read_ids(self, shard: int) -> list[str]:
        layout, entry = self._shards[shard]
        with layout.cuts_file(entry["shard"]).open("rb") as file, gzip.open(file, "rt", encoding="utf-8") as lines:
            return [json.loads(line)["custom"]["cut_id"] for line in lines]

    def __getstate__(self) -> dict[str, Any]:
        # Maps are reopened in the process that unpickles (a DataLoader worker): pickling one would copy the whole tar.
        return {**self.__dict__, "_maps": OrderedDict(), "_ids": OrderedDict()}


def read_description(layout: Layout) -> dict[str, Any]:
    """The content of `dataset.json`.

    Raises:
        InputError: it is missing (with a word about an unfinished run), not JSON, or of another format or version.
    """
    if not layout.dataset.exists():
        mend = (
            "a run has begun there but not finished; give the same `focalstream tokenize` command again"
            if layout.work.exists()
            else "expected a folder written by `focalstream tokenize`"
        )
        raise InputError(f"{layout.out} holds no dataset.json: {mend}")
    try:
        description = json.loads(layout.dataset.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{layout.dataset} is not JSON ({error}); tokenize again or restore it from a copy") from error
    found = (description.get("format"), description.get("version")) if isinstance(description, dict) else None
    if found != (FORMAT, FORMAT_VERSION):
        raise InputError(
            f"{layout.dataset}: format and version are {found}, expected {(FORMAT, FORMAT_VERSION)}; "
            "it was written by another program or another version of this one"
        )
    return description


def _read_index(layout: Layout, shard: dict[str, Any]) -> np.ndarray:
    path = layout.codes_index(shard["shard"])
    try:
        with path.open("rb") as file:
            rows = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); `focalstream verify {layout.out}` lists what is wrong"
        ) from error
    if rows.dtype != INDEX_DTYPE or rows.shape != (shard["cuts"],):
        raise InputError(
            f"{path} holds {rows.shape} rows of {rows.dtype}, expected ({shard['cuts']},) of {INDEX_DTYPE}; "
            f"`focalstream verify {layout.out}` lists what is wrong"
        )
    return rows


def _recent(cache: OrderedDict[int, Any], key: int, limit: int, load: Any) -> Any:
    """`cache[key]`, loaded when absent; the least recently used entry leaves when there are more than `limit`."""
    if key not in cache:
        cache[key] = load(key)
        if len(cache) > limit:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]
