"""`dataset.json`, which describes a finished dataset: its types, and the only code that reads, checks and writes it.

The file has a checksum over its own content, and a copy beside it (`dataset.copy.json`), so `focalstream repair` can
restore either of the two from the other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pipelines.format.layout import FORMAT, FORMAT_VERSION, Layout
from pipelines.storage.folders import Folder
from pipelines.storage.stable_bytes import StoredFile, json_bytes
from tokenizer.errors import InputError
from tokenizer.parsed import dataclass_from_dict

if TYPE_CHECKING:
    from tokenizer import Codec

Item = TypeVar("Item")


@dataclass(frozen=True)
class CodecEntry:
    """What a reader of the tokens needs to know about the codec that made them.

    Attributes:
        fingerprint: hex sha256 of configuration and weights.
        token_rate: tokens per second of audio.
        sample_rate: of the audio that the codec takes, in Hz.
        hop_samples: samples per token.
        first_samples: the fewest samples that give a token; 1 for codecs that stream. None in datasets of version
            0.1.0, whose codecs all stream.
    """

    name: str
    fingerprint: str
    codebook_size: int
    bits_per_token: int
    token_rate: float
    sample_rate: int
    hop_samples: int
    first_samples: int | None = None

    @classmethod
    def of(cls, codec: Codec) -> CodecEntry:
        """The entry of a loaded codec."""
        return cls(
            name=codec.name,
            fingerprint=codec.fingerprint,
            codebook_size=codec.codebook_size,
            bits_per_token=codec.bits_per_token,
            token_rate=codec.token_rate,
            sample_rate=codec.sample_rate_in,
            hop_samples=codec.hop_samples,
            first_samples=codec.first_samples,
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of `dataset.json`; values that are None are left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Totals:
    """Counts over a whole dataset, or over the shards of it that are done.

    Attributes:
        skipped: cuts of the input that the selection leaves out.
        planned: cuts that take part; `cuts` of them were tokenized and `quarantined` failed.
        duplicate_ids: cuts whose id had occurred before.
        seconds, hours: audio tokenized.
    """

    skipped: int
    planned: int
    cuts: int
    quarantined: int
    duplicate_ids: int
    tokens: int
    seconds: float
    hours: float


@dataclass(frozen=True)
class ShardEntry:
    """One shard; shards without any tokenized cut have no entry.

    Attributes:
        files: by path relative to the dataset.
        quarantined: how many of its cuts failed.
        seconds: audio tokenized.
    """

    shard: int
    files: dict[str, StoredFile]
    cuts: int
    tokens: int
    seconds: float
    quarantined: int

    def is_sound(self, layout: Layout) -> bool:
        """Whether every file of the shard exists with its size and checksum."""
        return all(stored.matches(layout.out / name) for name, stored in self.files.items())


@dataclass(frozen=True)
class Description:
    """The content of `dataset.json`.

    Attributes:
        codec: which codec made the tokens.
        made_from: everything that decides the bytes of the shards (input, selection, sharding, encoding, codec), or the
            datasets that this one was merged or split from.
        tools: versions of the packages that wrote it.
        files: those that belong to no shard, by path relative to the dataset.
        has_copy: whether `dataset.copy.json` was written too; version 0.1.0 wrote none.
        checksum: hex sha256 over all the rest.
    """

    codec: CodecEntry
    made_from: dict[str, Any]
    tools: dict[str, str]
    totals: Totals
    files: dict[str, StoredFile]
    shards: tuple[ShardEntry, ...]
    has_copy: bool = True
    checksum: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON, in the order of the file, with the checksum of this content."""
        content = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "has_copy": self.has_copy,
            "codec": self.codec.to_dict(),
            "made_from": self.made_from,
            "tools": self.tools,
            "totals": asdict(self.totals),
            "files": {name: asdict(stored) for name, stored in self.files.items()},
            "shards": [asdict(entry) for entry in self.shards],
        }
        return {**content, "checksum": content_checksum(content)}


def write_description(layout: Layout, description: Description) -> Description:
    """Write the copy, then `dataset.json` itself. Its presence means that the dataset is complete.

    Returns:
        The description with its checksum.
    """
    content = description.to_dict()
    for path in (layout.dataset_copy, layout.dataset):
        layout.write(path, json_bytes(content))
    return dataclasses.replace(description, checksum=content["checksum"])


def read_description(layout: Layout) -> Description:
    """The content of `dataset.json`.

    Raises:
        InputError: it is missing (the message says whether a run is unfinished), not JSON, of another format or
            version, or a key is missing or has a value of the wrong type.
    """
    if not layout.dataset.exists():
        expected = (
            "a run has begun there but not finished; give the same `focalstream tokenize` command again"
            if layout.work.exists()
            else "expected a folder written by `focalstream tokenize`"
        )
        raise InputError(f"{layout.out} holds no dataset.json: {expected}")
    try:
        content = json.loads(layout.dataset.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{layout.dataset} is not JSON ({error}); tokenize again or restore it from a copy") from error
    found = (content.get("format"), content.get("version")) if isinstance(content, dict) else None
    if found != (FORMAT, FORMAT_VERSION):
        raise InputError(
            f"{layout.dataset}: format and version are {found}, expected {(FORMAT, FORMAT_VERSION)}; "
            "it was written by another program or another version of this one"
        )
    if missing := [key for key in ("codec", "totals", "shards") if key not in content]:
        raise InputError(f"{layout.dataset}: lacks {missing[0]!r}; tokenize again or restore it from a copy")
    return _parsed(content, str(layout.dataset))


def read_intact(layout: Layout) -> Description:
    """The content of `dataset.json`, for what is made from it.

    Raises:
        InputError: as `read_description`, or its content has another checksum than it states.
    """
    description = read_description(layout)
    if not is_intact(layout.dataset):
        raise InputError(
            f"{layout.dataset}: its content does not match its checksum; `focalstream repair {layout.out}` restores it "
            "from its copy, or restore it from a backup"
        )
    return description


def is_intact(path: Folder) -> bool:
    """Whether the file, `dataset.json` or its copy, is JSON whose content has the checksum that it states."""
    try:
        content = json.loads(path.read_bytes())
        stated = content.pop("checksum")
        return stated == content_checksum(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def restore_description(layout: Layout) -> list[str]:
    """Restore `dataset.json` and its copy from each other. Returns the names of those that were restored.

    Raises:
        InputError: both are damaged or missing.
    """
    both = (layout.dataset, layout.dataset_copy)
    candidates = [path.read_bytes() for path in both if is_intact(path)]
    # The checksum is over the parsed content. Of two files with equal content, the right one has our spelling of it
    # (\u00fc, not \u00FC).
    sound = next((data for data in candidates if data == json_bytes(json.loads(data))), next(iter(candidates), None))
    if sound is None:
        raise InputError(
            f"{layout.dataset} and its copy are both damaged or missing; restore one of them from a backup, or "
            "tokenize again into another OUT"
        )
    restored = [path for path in both if not path.exists() or path.read_bytes() != sound]
    for path in restored:
        layout.write(path, sound)
    return [layout.name(path) for path in restored]


def content_checksum(content: dict[str, Any]) -> str:
    """Hex sha256 over the content of `dataset.json`, given without its checksum."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()


def _parsed(content: dict[str, Any], path: str) -> Description:
    shards = content["shards"]
    if not isinstance(shards, list):
        raise InputError(f"{path}: shards is {type(shards).__name__}, expected a list")
    return Description(
        codec=dataclass_from_dict(CodecEntry, content["codec"], f"{path}: codec"),
        made_from=_mapping(content, "made_from", path),
        tools=_mapping(content, "tools", path),
        totals=dataclass_from_dict(Totals, {"skipped": 0, **_mapping(content, "totals", path)}, f"{path}: totals"),
        files=_stored_files(_mapping(content, "files", path), path),
        shards=tuple(_shard_entry(entry, f"{path}: shard number {number}") for number, entry in enumerate(shards)),
        has_copy=bool(content.get("has_copy")),
        checksum=str(content.get("checksum", "")),
    )


def _mapping(content: dict[str, Any], key: str, path: str) -> dict[str, Any]:
    value = content.get(key, {})
    if not isinstance(value, dict):
        raise InputError(f"{path}: {key} is {type(value).__name__}, expected a mapping")
    return value


def _shard_entry(raw: Any, section: str) -> ShardEntry:
    # Not `dataclass_from_dict`, which is slow for the hundred thousand shards of a large dataset.
    try:
        entry = ShardEntry(**{**raw, "files": _stored_files(raw["files"], section)})
    except (KeyError, TypeError) as error:
        raise InputError(f"{section}: a key is missing or unknown ({error})") from None
    counts = (entry.shard, entry.cuts, entry.tokens, entry.quarantined)
    if not all(type(count) is int for count in counts) or type(entry.seconds) not in (int, float):
        raise InputError(f"{section}: a count is not a number: {counts}, {entry.seconds!r} s")
    return entry


def _stored_files(raw: Any, section: str) -> dict[str, StoredFile]:
    try:
        files = {name: StoredFile(**stored) for name, stored in raw.items()}
    except (AttributeError, TypeError) as error:
        raise InputError(f"{section}: a file has no size or checksum ({error})") from None
    for name, stored in files.items():
        if type(stored.bytes) is not int or type(stored.sha256) is not str:
            raise InputError(f"{section}: {name} has size {stored.bytes!r} and sha256 {stored.sha256!r}")
    return files


def spread(entries: Sequence[Item], most: int | None) -> Sequence[Item]:
    """At most `most` entries, evenly spaced, including the first and the last."""
    if most is None or most >= len(entries):
        return entries
    return [entries[round(i)] for i in np.linspace(0, len(entries) - 1, most)]
