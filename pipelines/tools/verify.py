"""Checks a tokenized dataset by reading all of it again.

Every file is compared with its checksum; every tar with its cuts, its indexes and the codec; token counts with
durations; the totals with each other; and the shards as Lhotse, webdataset and Hugging Face `datasets` read them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import re
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.dataset.mapped_shards import mappable
from pipelines.format.description import CodecEntry, Description, ShardEntry, is_intact, read_description
from pipelines.format.layout import INDEX_DTYPE, Layout
from pipelines.format.ledger import read_quarantine
from pipelines.format.member_ids import original_id
from pipelines.format.packed import PackedShard
from pipelines.format.shards import Pair, read_cuts, read_index, read_pairs
from pipelines.sources.audio import expected_samples
from pipelines.sources.cuts import duration
from pipelines.storage.folders import Folder, on_disk
from pipelines.storage.stable_bytes import StoredFile, sha256_file
from tokenizer.errors import InputError
from tokenizer.rates import token_count

READ_ERRORS = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zlib.error, tarfile.TarError)
"""What reading damaged files raises; each error becomes a problem in the list."""


def verify(out: Folder) -> list[str]:
    """Problems of the dataset in `out`, each one line that begins with the file it is about; empty when it is sound.

    Behind a URL only our own reader is used; other libraries are tried on local folders.

    Raises:
        InputError: there is no finished dataset in `out`, or the store behind the URL fails.
    """
    layout = Layout(out)
    try:
        description = read_description(layout)
    except InputError as error:
        if not layout.dataset.exists():
            raise
        return [f"dataset.json: {error}"]
    return list(_problems(layout, description))


def _problems(layout: Layout, description: Description) -> Iterator[str]:
    intact = is_intact(layout.dataset)
    if not intact:
        yield "dataset.json: its content does not match its checksum"
    if description.has_copy and not _same_content(layout.dataset, layout.dataset_copy):
        yield f"{layout.dataset_copy.name}: missing or not the same as dataset.json"
    yield from _strange_files(layout, description, intact)
    yield from _totals(description)
    damaged = set()
    for name, recorded in description.files.items():
        yield from _checksum(layout, name, recorded)
    yield from _quarantine(layout, description)
    for entry in description.shards:
        names = [layout.name(path) for path in layout.shard_files(entry.shard)]
        with on_disk(layout.out, [name for name in names if name in entry.files]) as folder:
            local = Layout(folder)
            problems = [*_checksums(local, entry), *_shard(local, entry, description.codec)]
        if problems:
            damaged.add(entry.shard)
        yield from problems
    whole = [entry.shard for entry in description.shards if entry.shard not in damaged]
    if whole and isinstance(layout.out, Path):
        for name, reader in installed_readers().items():
            yield from _reader_agrees(layout, whole, name, reader)


# ---- files ------------------------------------------------------------------------------------------------------


def _strange_files(layout: Layout, description: Description, intact: bool) -> Iterator[str]:
    """Files that are not part of the dataset: Lhotse would take one in shards/ for a data field. Where `dataset.json`
    is not `intact`, they may be part of it all the same."""
    remedy = "remove it" if intact else "keep it until `focalstream repair` has restored dataset.json"
    known = set(description.files) | {name for entry in description.shards for name in entry.files}
    for folder in (layout.shards, layout.index, layout.packed):
        for name in sorted(f"{folder.name}/{path.name}" for path in folder.iterdir()) if folder.exists() else []:
            if name not in known:
                yield f"{name}: not part of the dataset; {remedy}"


def _same_content(path: Folder, copy: Folder) -> bool:
    return copy.is_file() and path.read_bytes() == copy.read_bytes()


def _checksums(layout: Layout, entry: ShardEntry) -> Iterator[str]:
    for name, recorded in entry.files.items():
        yield from _checksum(layout, name, recorded)


def _checksum(layout: Layout, name: str, recorded: StoredFile) -> Iterator[str]:
    path = layout.out / name
    if not path.is_file():
        yield f"{name}: missing"
    elif path.stat().st_size != recorded.bytes:
        yield f"{name}: {path.stat().st_size} bytes, dataset.json says {recorded.bytes}"
    elif (found := sha256_file(path)) != recorded.sha256:
        yield f"{name}: sha256 is {found[:12]}..., dataset.json says {recorded.sha256[:12]}..."


# ---- totals -----------------------------------------------------------------------------------------------------


def _totals(description: Description) -> Iterator[str]:
    totals, shards = description.totals, description.shards
    for name in ("cuts", "tokens"):
        found, stated = sum(getattr(entry, name) for entry in shards), getattr(totals, name)
        if found != stated:
            yield f"dataset.json: its shards have {found} {name}, its totals say {stated}"
    if totals.planned != totals.cuts + totals.quarantined:
        yield (
            f"dataset.json: {totals.planned} cuts planned, but {totals.cuts} tokenized and "
            f"{totals.quarantined} quarantined"
        )


def _quarantine(layout: Layout, description: Description) -> Iterator[str]:
    expected = description.totals.quarantined
    try:
        lines = list(read_quarantine(layout))
        by_shard = Counter(shard for shard, _ in lines)
    except READ_ERRORS as error:
        yield f"quarantine.jsonl: cannot be read ({error!r})"
        return
    unexplained = sum(not (failed.id and failed.reason) for _, failed in lines)
    if len(lines) != expected:
        yield f"quarantine.jsonl: {len(lines)} cuts, dataset.json says {expected}"
    if unexplained:
        yield f"quarantine.jsonl: {unexplained} cuts without an id or a reason"
    if None not in by_shard:  # version 0.1.0 did not write the shard
        for entry in description.shards:
            if by_shard[entry.shard] != entry.quarantined:
                yield (
                    f"quarantine.jsonl: {by_shard[entry.shard]} cuts of shard {entry.shard}, dataset.json says "
                    f"{entry.quarantined}"
                )


# ---- one shard --------------------------------------------------------------------------------------------------


def _shard(layout: Layout, entry: ShardEntry, codec: CodecEntry) -> Iterator[str]:
    """Problems of one shard's content that checksums cannot show, because they also match a wrongly written file."""
    shard = entry.shard
    tar_name, cuts_name = f"shards/{layout.codes_tar(shard).name}", f"shards/{layout.cuts_file(shard).name}"
    try:
        pairs = list(read_pairs(layout.codes_tar(shard)))
    except READ_ERRORS as error:
        yield f"{tar_name}: cannot be read ({error})"
        return
    try:
        cuts = read_cuts(layout.cuts_file(shard))
        for (member, codes, manifest, _), cut in zip(pairs, cuts, strict=False):
            yield from (f"{tar_name}: {member}: {problem}" for problem in _codes(codes, cut, codec))
            yield from (f"{cuts_name}: {cut['id']}: {problem}" for problem in _cut(member, manifest, cut))
    except READ_ERRORS as error:
        yield f"{cuts_name}: cannot be read ({error!r})"
        return
    tokens = sum(len(pair.codes) for pair in pairs)
    if not len(pairs) == len(cuts) == entry.cuts or tokens != entry.tokens:
        yield (
            f"{tar_name}: {len(pairs)} codes with {tokens} tokens and {len(cuts)} cuts, dataset.json says "
            f"{entry.cuts} with {entry.tokens}"
        )
    if len({pair.member for pair in pairs}) != len(pairs):
        yield f"{tar_name}: the same member twice"
    yield from _indexes(layout, shard, pairs)
    if f"packed/{layout.packed_codes(shard).name}" in entry.files:
        yield from _packed(layout, entry, pairs)


def _codes(codes: np.ndarray, cut: dict[str, Any], codec: CodecEntry) -> Iterator[str]:
    if codes.dtype != np.uint16 or codes.ndim != 1 or not codes.size:
        yield f"{codes.dtype} of shape {codes.shape}, expected uint16 (T,)"
        return
    if codes.max() >= codec.codebook_size:
        yield f"token {codes.max()} is outside the codebook of {codec.codebook_size}"
    samples = expected_samples(cut, duration(cut), codec.sample_rate)
    expected = token_count(samples, codec.hop_samples, codec.first_samples or 1)
    if samples and len(codes) != expected:  # a mix has no recording to count samples of
        yield f"{len(codes)} tokens, but {duration(cut)} s make {expected}"


def _cut(member: str, manifest: dict[str, Any], cut: dict[str, Any]) -> Iterator[str]:
    if cut["id"] != member:
        yield f"its turn in the tar has {member}"
    if cut["custom"]["codes"] != manifest:
        yield "its codes placeholder differs from the JSON in the tar"
    original = original_id(member)
    if original is not None and original != cut["custom"]["cut_id"]:
        yield f"stands for {original}, but custom.cut_id is {cut['custom']['cut_id']}"


def _indexes(layout: Layout, shard: int, pairs: list[Pair]) -> Iterator[str]:
    path = layout.codes_index(shard)
    try:
        rows = read_index(layout, shard)
    except READ_ERRORS as error:
        yield f"index/{path.name}: cannot be read ({error})"
    else:
        expected = np.array([(pair.begin, len(pair.codes)) for pair in pairs], INDEX_DTYPE)
        if rows.dtype != INDEX_DTYPE or not np.array_equal(rows, expected):
            yield f"index/{path.name}: does not match the tar"
    path = layout.lhotse_index(shard)
    try:
        offsets = np.frombuffer(path.read_bytes(), "<u8")
        with layout.codes_tar(shard).open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            begins = [member.offset for member in tar.getmembers()[::2]]
    except READ_ERRORS as error:
        yield f"index/{path.name}: cannot be read ({error})"
    else:
        if offsets.tolist() != [*begins, layout.codes_tar(shard).stat().st_size]:
            yield f"index/{path.name}: does not match the tar"


def _packed(layout: Layout, entry: ShardEntry, pairs: list[Pair]) -> Iterator[str]:
    path = layout.packed_codes(entry.shard)
    name = f"packed/{path.name}"
    try:
        packed = PackedShard(mappable(path))
        ids, found = packed.ids, [packed.codes(i) for i in range(len(packed))]
    except (*READ_ERRORS, InputError) as error:
        yield f"{name}: cannot be read ({error})"
        return
    if ids != [pair.member for pair in pairs]:
        yield f"{name}: its ids are not those of the tar"
    elif not all(np.array_equal(codes, pair.codes) for codes, pair in zip(found, pairs, strict=True)):
        yield f"{name}: its codes are not those of the tar"


# ---- other libraries --------------------------------------------------------------------------------------------


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


def _reader_agrees(layout: Layout, shards: list[int], name: str, reader: Reader) -> Iterator[str]:
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
