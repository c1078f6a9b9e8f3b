"""Everything that can be wrong with a tokenized dataset, found by reading all of it again.

Every file against its checksum; every tar against its cuts, its indexes and the codec; token counts against durations;
the totals against one another; and the shards through the libraries that are to read them.
"""

from __future__ import annotations

import gzip
import itertools
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.bulk.finalize import description_checksum
from pipelines.dataset.mapped_shards import mappable
from pipelines.dataset.token_dataset import read_description
from pipelines.format.layout import INDEX_DTYPE, Layout
from pipelines.format.member_ids import original_id
from pipelines.format.packed import PackedShard
from pipelines.format.stored_shard import Pair, read_pairs
from pipelines.sources.audio import expected_samples
from pipelines.sources.cuts import duration
from pipelines.storage.folders import Folder, on_disk
from pipelines.storage.stable_bytes import sha256_file
from pipelines.tools.readers import Reader, installed_readers
from tokenizer.errors import InputError
from tokenizer.rates import token_count

READ_ERRORS = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zlib.error, tarfile.TarError)
"""What reading damaged files raises; each becomes a problem in the list."""


def verify(out: Folder) -> list[str]:
    """Problems of the dataset in `out`, each one line that begins with the file it is about; empty when it is sound.

    Behind a URL everything is read by this project only: other libraries are tried on local folders.

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
    try:
        return list(_problems(layout, description))
    except (
        KeyError,
        TypeError,
        AttributeError,
    ) as error:  # JSON of the right format and version, but with damaged keys
        return [f"dataset.json: a key is missing or of the wrong type ({error!r})"]


def _problems(layout: Layout, description: dict[str, Any]) -> Iterator[str]:
    if description["checksum"] != description_checksum(description):
        yield "dataset.json: its content does not match its checksum"
    if description.get("has_copy") and not _same_content(layout.dataset, layout.dataset_copy):
        yield f"{layout.dataset_copy.name}: missing or not the same as dataset.json"
    yield from _strange_files(layout, description)
    yield from _totals(description)
    damaged = set()
    for name, recorded in description["files"].items():
        yield from _checksum(layout, name, recorded)
    yield from _quarantine(layout, description)
    for entry in description["shards"]:
        names = [layout.name(path) for path in layout.shard_files(entry["shard"])]
        with on_disk(layout.out, [name for name in names if name in entry["files"]]) as folder:
            local = Layout(folder)
            problems = [*_checksums(local, entry), *_shard(local, entry, description["codec"])]
        if problems:
            damaged.add(entry["shard"])
        yield from problems
    whole = [entry["shard"] for entry in description["shards"] if entry["shard"] not in damaged]
    if whole and isinstance(layout.out, Path):
        for name, reader in installed_readers().items():
            yield from _reader_agrees(layout, whole, name, reader)


# ---- files ------------------------------------------------------------------------------------------------------


def _strange_files(layout: Layout, description: dict[str, Any]) -> Iterator[str]:
    """Files that nobody knows: Lhotse would take one in shards/ for a data field."""
    known = set(description["files"]) | {name for entry in description["shards"] for name in entry["files"]}
    for folder in (layout.shards, layout.index, layout.packed):
        for name in sorted(f"{folder.name}/{path.name}" for path in folder.iterdir()) if folder.exists() else []:
            if name not in known:
                yield f"{name}: not part of the dataset; remove it"


def _same_content(path: Folder, copy: Folder) -> bool:
    return copy.is_file() and path.read_bytes() == copy.read_bytes()


def _checksums(layout: Layout, entry: dict[str, Any]) -> Iterator[str]:
    for name, recorded in entry["files"].items():
        yield from _checksum(layout, name, recorded)


def _checksum(layout: Layout, name: str, recorded: dict[str, Any]) -> Iterator[str]:
    path = layout.out / name
    if not path.is_file():
        yield f"{name}: missing"
    elif path.stat().st_size != recorded["bytes"]:
        yield f"{name}: {path.stat().st_size} bytes, dataset.json says {recorded['bytes']}"
    elif (found := sha256_file(path)) != recorded["sha256"]:
        yield f"{name}: sha256 is {found[:12]}..., dataset.json says {recorded['sha256'][:12]}..."


# ---- totals -----------------------------------------------------------------------------------------------------


def _totals(description: dict[str, Any]) -> Iterator[str]:
    totals, shards = description["totals"], description["shards"]
    for name in ("cuts", "tokens"):
        found = sum(entry[name] for entry in shards)
        if found != totals[name]:
            yield f"dataset.json: its shards have {found} {name}, its totals say {totals[name]}"
    if totals["planned"] != totals["cuts"] + totals["quarantined"]:
        yield (
            f"dataset.json: {totals['planned']} cuts planned, but {totals['cuts']} tokenized and "
            f"{totals['quarantined']} quarantined"
        )


def _quarantine(layout: Layout, description: dict[str, Any]) -> Iterator[str]:
    expected = description["totals"]["quarantined"]
    try:
        entries = [json.loads(line) for line in layout.quarantine.read_text(encoding="utf-8").splitlines()]
        unexplained = sum(not (entry["id"] and entry["reason"]) for entry in entries)
        by_shard = Counter(entry.get("shard") for entry in entries)
    except READ_ERRORS as error:
        yield f"quarantine.jsonl: cannot be read ({error!r})"
        return
    if len(entries) != expected:
        yield f"quarantine.jsonl: {len(entries)} cuts, dataset.json says {expected}"
    if unexplained:
        yield f"quarantine.jsonl: {unexplained} cuts without an id or a reason"
    if None not in by_shard:  # version 0.1.0 did not write the shard
        for shard in description["shards"]:
            if by_shard[shard["shard"]] != shard["quarantined"]:
                yield (
                    f"quarantine.jsonl: {by_shard[shard['shard']]} cuts of shard {shard['shard']}, dataset.json says "
                    f"{shard['quarantined']}"
                )


# ---- one shard --------------------------------------------------------------------------------------------------


def _shard(layout: Layout, entry: dict[str, Any], codec: dict[str, Any]) -> Iterator[str]:
    """Problems of one shard's content, which its checksums cannot see: they hold for a wrongly written file as well."""
    shard = entry["shard"]
    tar_name, cuts_name = f"shards/{layout.codes_tar(shard).name}", f"shards/{layout.cuts_file(shard).name}"
    try:
        pairs = list(read_pairs(layout.codes_tar(shard)))
    except READ_ERRORS as error:
        yield f"{tar_name}: cannot be read ({error})"
        return
    try:
        with layout.cuts_file(shard).open("rb") as file, gzip.open(file, "rt", encoding="utf-8") as lines:
            cuts = [json.loads(line) for line in lines]
        for (member, codes, manifest, _), cut in zip(pairs, cuts, strict=False):
            yield from (f"{tar_name}: {member}: {problem}" for problem in _codes(codes, cut, codec))
            yield from (f"{cuts_name}: {cut['id']}: {problem}" for problem in _cut(member, manifest, cut))
    except READ_ERRORS as error:
        yield f"{cuts_name}: cannot be read ({error!r})"
        return
    tokens = sum(len(codes) for _, codes, _, _ in pairs)
    if not len(pairs) == len(cuts) == entry["cuts"] or tokens != entry["tokens"]:
        yield (
            f"{tar_name}: {len(pairs)} codes with {tokens} tokens and {len(cuts)} cuts, dataset.json says "
            f"{entry['cuts']} with {entry['tokens']}"
        )
    if len({member for member, _, _, _ in pairs}) != len(pairs):
        yield f"{tar_name}: the same member twice"
    yield from _indexes(layout, shard, pairs)
    if f"packed/{layout.packed_codes(shard).name}" in entry["files"]:
        yield from _packed(layout, entry, pairs)


def _codes(codes: np.ndarray, cut: dict[str, Any], codec: dict[str, Any]) -> Iterator[str]:
    if codes.dtype != np.uint16 or codes.ndim != 1 or not codes.size:
        yield f"{codes.dtype} of shape {codes.shape}, expected uint16 (T,)"
        return
    if codes.max() >= codec["codebook_size"]:
        yield f"token {codes.max()} is outside the codebook of {codec['codebook_size']}"
    samples = expected_samples(cut, duration(cut), codec["sample_rate"])
    # Datasets of version 0.1.0 say no first_samples: their codecs all stream.
    expected = token_count(samples, codec["hop_samples"], codec.get("first_samples", 1))
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
        with path.open("rb") as file:
            rows = np.load(file, allow_pickle=False)
    except READ_ERRORS as error:
        yield f"index/{path.name}: cannot be read ({error})"
    else:
        expected = np.array([(begin, len(codes)) for _, codes, _, begin in pairs], INDEX_DTYPE)
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


def _packed(layout: Layout, entry: dict[str, Any], pairs: list[Pair]) -> Iterator[str]:
    path = layout.packed_codes(entry["shard"])
    name = f"packed/{path.name}"
    try:
        packed = PackedShard(mappable(path))
        ids, found = packed.ids, [packed.codes(i) for i in range(len(packed))]
    except (*READ_ERRORS, InputError) as error:
        yield f"{name}: cannot be read ({error})"
        return
    if ids != [member for member, _, _, _ in pairs]:
        yield f"{name}: its ids are not those of the tar"
    elif not all(np.array_equal(a, codes) for a, (_, codes, _, _) in zip(found, pairs, strict=True)):
        yield f"{name}: its codes are not those of the tar"


# ---- other libraries --------------------------------------------------------------------------------------------


def _reader_agrees(layout: Layout, shards: list[int], name: str, reader: Reader) -> Iterator[str]:
    """One problem at most: where a reader first differs from this project, or that it fails."""
    ours = ((member, codes) for shard in shards for member, codes, _, _ in read_pairs(layout.codes_tar(shard)))
    read = 0
    try:
        for ours_next, theirs in itertools.zip_longest(ours, reader(layout, shards)):
            if ours_next is None or theirs is None:
                yield f"shards: {name} reads {'more' if ours_next is None else 'fewer'} cuts than there are"
                return
            if ours_next[0] != theirs[0] or not np.array_equal(ours_next[1], theirs[1]):
                yield f"shards: {name} reads {theirs[0]} where {ours_next[0]} is, or other codes for it"
                return
            read += 1
    except Exception as error:  # other people's code: whatever it raises is the finding
        yield f"shards: {name} fails after {read} cuts ({type(error).__name__}: {error})"
