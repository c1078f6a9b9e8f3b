"""Checks a tokenized dataset by reading all of it again.

Every file is compared with its checksum; every tar with its cuts, its indexes and the codec; token counts with
durations; the totals with each other; and the shards as Lhotse, webdataset and Hugging Face `datasets` read them.
"""

from __future__ import annotations

import multiprocessing
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.bulk.ownership import Part, dealt_to
from pipelines.dataset.mapped_shards import mappable
from pipelines.format.description import CodecEntry, Description, ShardEntry, is_intact, read_description, spread
from pipelines.format.layout import INDEX_DTYPE, Layout
from pipelines.format.ledger import read_quarantine
from pipelines.format.member_ids import original_id
from pipelines.format.packed import PackedShard
from pipelines.format.shards import Pair, read_cuts, read_index, read_pairs
from pipelines.sources.audio import expected_samples
from pipelines.sources.cuts import duration
from pipelines.storage.folders import Folder, on_disk
from pipelines.storage.stable_bytes import StoredFile, sha256_file
from pipelines.tools.other_readers import installed_readers, reader_agrees
from tokenizer.errors import InputError
from tokenizer.rates import token_count

SHARDS_A_TASK = 16  # of a worker

READ_ERRORS = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zlib.error, tarfile.TarError)
"""What reading damaged files raises; each error becomes a problem in the list."""


@dataclass(frozen=True)
class Share:
    """Which shards to read, of all that a dataset has.

    Attributes:
        part: every N-th of them; None: all.
        sample: at most so many of these, spread evenly; None: all.
    """

    part: Part | None = None
    sample: int | None = None

    def __post_init__(self) -> None:
        if self.sample is not None and self.sample < 1:
            raise InputError(f"--sample is {self.sample}, expected at least 1 shard")

    def of(self, entries: Sequence[ShardEntry]) -> list[ShardEntry]:
        return list(spread([entries[i] for i in dealt_to(self.part, len(entries))], self.sample))


def verify(out: Folder, share: Share | None = None, workers: int = 1) -> list[str]:
    """Problems of the dataset in `out`, each one line that begins with the file it is about; empty when it is sound.

    Behind a URL only our own reader is used; other libraries are tried on local folders.

    Args:
        share: of the shards; what is not in a shard is checked without one, by the first part, and with every sample.
        workers: processes that read shards. Problems come in the same order whatever their number.

    Raises:
        InputError: there is no finished dataset in `out`, or the store behind the URL fails.
    """
    layout, share = Layout(out), share or Share()
    try:
        description = read_description(layout)
    except InputError as error:
        if not layout.dataset.exists():
            raise
        return [f"dataset.json: {error}"]
    found = [] if share.part is not None and share.part.number > 1 else list(_outside_shards(layout, description))
    groups = [share.of(description.shards)]
    if workers > 1:
        groups = [groups[0][i : i + SHARDS_A_TASK] for i in range(0, len(groups[0]), SHARDS_A_TASK)]
    codecs = [description.codec] * len(groups)
    if workers == 1 or len(groups) < 2:
        return found + [problem for group in groups for problem in _shards(layout, group, description.codec)]
    # not forked: threads of a store's client do not live on in a fork
    with ProcessPoolExecutor(min(workers, len(groups)), multiprocessing.get_context("spawn")) as pool:
        return found + [line for lines in pool.map(_shards, [layout] * len(groups), groups, codecs) for line in lines]


def _outside_shards(layout: Layout, description: Description) -> Iterator[str]:
    intact = is_intact(layout.dataset)
    if not intact:
        yield "dataset.json: its content does not match its checksum"
    if description.has_copy and not _same_content(layout.dataset, layout.dataset_copy):
        yield f"{layout.dataset_copy.name}: missing or not the same as dataset.json"
    yield from _strange_files(layout, description, intact)
    yield from _totals(description)
    for name, recorded in description.files.items():
        yield from _checksum(layout, name, recorded)
    yield from _quarantine(layout, description)


def _shards(layout: Layout, entries: Sequence[ShardEntry], codec: CodecEntry) -> list[str]:
    """Problems of some shards: of each by itself, then as other libraries read those that have none."""
    found, damaged = [], set()
    for entry in entries:
        names = [layout.name(path) for path in layout.shard_files(entry.shard)]
        with on_disk(layout.out, [name for name in names if name in entry.files]) as folder:
            local = Layout(folder)
            problems = [*_checksums(local, entry), *_shard(local, entry, codec)]
        if problems:
            damaged.add(entry.shard)
        found += problems
    whole = [entry.shard for entry in entries if entry.shard not in damaged]
    if whole and isinstance(layout.out, Path):
        for name, reader in installed_readers().items():
            found += reader_agrees(layout, whole, name, reader)
    return found


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
