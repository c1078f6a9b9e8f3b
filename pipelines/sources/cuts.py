"""A cut as its manifest has it, the JSON lines that manifests are made of, and which cuts take part.

Cuts stay the JSON dictionaries they are: everything they carry reaches the shards untouched, and planning millions of
them costs no more than parsing JSON.
"""

from __future__ import annotations

import gzip
import io
import json
import logging
import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

from pipelines.sources.access import FILE_SOURCES, NO_MORE, REFUSED, Access
from pipelines.sources.pieces import AudioPlace
from pipelines.storage.places import exists, is_absolute, is_url, join, open_place
from tokenizer.errors import InputError

log = logging.getLogger(__name__)

CUT_TYPES = ("MonoCut", "MultiCut", "MixedCut", "Cut", "PaddingCut")  # Cut: MonoCut's name before Lhotse 0.8
UNUSABLE = "unusable"  # the type of a source that is known to be bad; "reason" and "source" say how
RESERVED = ("codes", "cut_id")  # custom fields that shards write
LONGEST_LINE = 1 << 26  # bytes of a manifest; a compressed one could unfold to any length
LONGEST_SECONDS = 1e9  # of a cut, 32 years; more is a mistake, and would spoil every sum
BLANK_LINES = 100_000  # one after another; a few kilobytes of gzip hold hundreds of millions


@dataclass(frozen=True)
class SourceCut:
    """A cut as the manifest has it, with recording paths resolved.

    Attributes:
        audio: of cuts whose audio has no file of its own, but lies in a tar or in a Parquet file.
        hosts: that its audio may come from, also by redirects of HTTP; None for any.
    """

    cut: dict[str, Any]
    audio: AudioPlace | None = None
    hosts: tuple[str, ...] | None = None

    @property
    def id(self) -> str:
        return self.cut["id"]

    @property
    def seconds(self) -> float:
        """Duration in seconds; 0 where the manifest has none that makes sense."""
        return duration(self.cut)


@dataclass(frozen=True, kw_only=True)
class PlannedCut(SourceCut):
    """One cut of a shard; `member` is its name in the tar."""

    member: str

    @classmethod
    def of(cls, item: SourceCut, member: str) -> PlannedCut:
        return cls(item.cut, item.audio, item.hosts, member=member)


class CutError(Exception):
    """A cut that cannot be tokenized. `reason` is one of a few fixed phrases, the message has the details."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass
class PathRule:
    """Makes relative recording paths of one manifest absolute.

    They are relative to the working directory or to the manifest's folder: the first recording that exists in either
    decides for the whole manifest, so that a manifest of millions of lines does not cost millions of file look-ups.

    Attributes:
        unfound: a recording was in neither before one was found, and was taken to belong to the manifest's folder.
    """

    manifest_folder: str
    access: Access = NO_MORE
    base: str | None = None
    unfound: bool = False
    renamed: dict[str, str] = field(default_factory=dict)

    def settle(self, source: dict[str, Any]) -> None:
        """Make a source's path absolute, or mark the source as one that may not be read."""
        if source["type"] in FILE_SOURCES:
            source["source"] = self.resolve(source["source"])
        if not self.access.allows(source, self.manifest_folder):
            source["type"], source["refused"] = REFUSED, source["type"]

    def keep_apart(self, item: dict[str, Any]) -> None:
        """Rename custom fields of a cut by whose names the shards call something else, and say so once."""
        custom = item.get("custom") or {}
        for name in RESERVED if item["type"] != "MixedCut" else (*RESERVED, "tracks"):
            if name in custom:
                other = f"input_{name}"
                while other in custom:
                    other = f"input_{other}"
                custom[other] = custom.pop(name)
                self.rename(name, other)

    def rename(self, name: str, other: str) -> None:
        """Say once what a field is called now."""
        if name not in self.renamed:
            log.warning("custom.%s of the input is kept as custom.%s: shards have their own", name, other)
        self.renamed[name] = other

    def resolve(self, path: str) -> str:
        if is_absolute(path):
            return path
        if self.base is None:
            bases = (self.manifest_folder,) if is_url(self.manifest_folder) else (os.getcwd(), self.manifest_folder)
            self.base = next((base for base in bases if exists(join(base, path))), None)
            self.unfound |= self.base is None
        return join(self.base or self.manifest_folder, path)


def recordings(cut: dict[str, Any]) -> list[dict[str, Any]]:
    """The recordings a cut refers to: none or one, or those of all tracks of a mix."""
    if cut.get("type") == "MixedCut":
        return [found for track in cut["tracks"] for found in recordings(track["cut"])]
    return [cut["recording"]] if cut.get("recording") else []


def is_remote(item: SourceCut) -> bool:
    """Whether any of a cut's audio lies behind a URL."""
    if item.audio is not None:
        return is_url(item.audio.path)
    places = (source.get("source") for recording in recordings(item.cut) for source in recording.get("sources", []))
    return any(isinstance(place, str) and is_url(place) for place in places)


def duration(cut: dict[str, Any]) -> float:
    """Seconds a cut lasts; 0.0 where that is missing, negative, not finite or beyond `LONGEST_SECONDS`."""
    if cut.get("type") == "MixedCut":
        seconds = max((track.get("offset", 0.0) + duration(track["cut"]) for track in cut["tracks"]), default=0.0)
    else:
        seconds = cut.get("duration")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return 0.0
    return float(seconds) if 0 < seconds <= LONGEST_SECONDS else 0.0


def describe_source(item: SourceCut) -> str:
    """Where the audio of a cut should be, for people."""
    if item.audio is not None:
        return str(item.audio)
    found = [source.get("source") for recording in recordings(item.cut) for source in recording.get("sources", [])]
    return ", ".join(str(source) for source in found)


def read_json_lines(path: str, opened: BinaryIO | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file, line N", object) of every line of a .jsonl or .jsonl.gz file, which may be `opened` already.

    Raises:
        InputError: a line is not a JSON object, or the compression is damaged; file and line are named.
    """
    for number, line in read_lines(path, opened):
        yield f"{path}, line {number}", parsed_line(path, number, line)


def read_lines(path: str, opened: BinaryIO | None = None) -> Iterator[tuple[int, bytes]]:
    """(number, line) of every line that is not blank. Raises InputError as `read_json_lines` does."""
    number = blank = 0
    try:
        # fsspec's files have a readline without a limit
        with (
            opened or open_place(path) as file,
            gzip.open(file) if path.endswith(".gz") else io.BufferedReader(file) as lines,  # type: ignore[type-var]
        ):
            for number, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE), b""), 1):
                if len(line) == LONGEST_LINE:
                    raise _bad_line(path, number, f"longer than {LONGEST_LINE >> 20} MiB")
                if not line.strip():
                    blank += 1
                    if blank > BLANK_LINES:
                        raise _bad_line(path, number, f"more than {BLANK_LINES:,} blank lines one after another")
                    continue
                blank = 0
                yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged gzip after line {number} ({error}); copy or make it again") from error


def parsed_line(path: str, number: int, line: bytes) -> dict[str, Any]:
    """The JSON object of a line. Raises InputError where it is none."""
    try:
        value = json.loads(line)
        if not isinstance(value, dict):
            raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else error
        raise _bad_line(path, number, what) from error
    return value


def _bad_line(path: str, number: int, what: object) -> InputError:
    return InputError(f"{path}, line {number}: {what}; mend or remove this line")


def as_cut(item: dict[str, Any], where: str, rule: PathRule) -> dict[str, Any]:
    """A manifest line as a cut with resolved paths; a recording becomes the cut of all of it."""
    if "sources" in item and "type" not in item:
        try:
            item = whole_recording(item)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where}: a recording not as Lhotse writes it (at {error}); mend this line") from error
    if item.get("type") not in CUT_TYPES:
        raise InputError(
            f"{where}: expected a Lhotse cut or recording, found type {item.get('type')!r} with the keys "
            f"{sorted(item)}; join recordings and supervisions with `lhotse cut simple`"
        )
    if not isinstance(item.get("id"), str) or not item["id"]:
        raise InputError(f"{where}: its id is {item.get('id')!r}, expected text that is not empty")
    if not isinstance(item.get("custom") or {}, dict):
        raise InputError(f"{where}: its custom field is {item['custom']!r}, expected a JSON object; mend this line")
    try:
        for recording in recordings(item):
            for source in recording["sources"]:
                rule.settle(source)
        rule.keep_apart(item)
        duration(item)
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise InputError(
            f"{where}: cut {item['id']} is not as Lhotse writes it (at {error}); mend this line"
        ) from error
    return item


def whole_recording(recording: dict[str, Any]) -> dict[str, Any]:
    """The cut of all of a recording, with all its channels."""
    channels = recording.get("channel_ids") or sorted(
        channel for source in recording["sources"] for channel in source.get("channels", [0])
    )
    mono = len(channels) == 1
    return {
        "id": recording.get("id"),
        "start": 0.0,
        "duration": recording.get("duration"),
        "channel": channels[0] if mono else channels,
        "supervisions": [],
        "recording": recording,
        "type": "MonoCut" if mono else "MultiCut",
    }


@dataclass(frozen=True)
class Selection:
    """What to take of the input.

    Attributes:
        min_seconds, max_seconds: cuts shorter or longer than this are skipped, and counted. A cut whose duration is
            not known is no short cut: it takes part, and ends in the quarantine.
        channel: of cuts with several channels take this one, instead of the mean of all. A mix stays a mix.
        allow_commands, allow_hosts: see `pipelines.sources.access`.
    """

    min_seconds: float = 0.0
    max_seconds: float = math.inf
    channel: int | None = None
    allow_commands: bool = False
    allow_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.min_seconds <= self.max_seconds:
            raise InputError(
                f"min_seconds is {self.min_seconds} and max_seconds is {self.max_seconds}: expected 0 or more, and the "
                "second not below the first"
            )
        if self.channel is not None and self.channel < 0:
            raise InputError(f"channel is {self.channel}, expected a number from 0")

    def to_dict(self) -> dict[str, Any]:
        """What differs from the default; JSON has no infinity."""
        default = asdict(Selection())
        chosen = {name: value for name, value in asdict(self).items() if value != default[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}

    @property
    def access(self) -> Access:
        """What a manifest may do besides naming files."""
        return Access(self.allow_commands, tuple(self.allow_hosts))

    def skips(self, seconds: float) -> bool:
        """Whether a cut of this duration takes no part; 0 means unknown."""
        return seconds > 0 and not self.min_seconds <= seconds <= self.max_seconds

    def narrowed(self, cut: dict[str, Any]) -> dict[str, Any]:
        """The cut with the chosen channel only: a MultiCut becomes the MonoCut that Lhotse's `to_mono` makes of it."""
        if self.channel is None or cut["type"] != "MultiCut":
            return cut
        supervisions = [
            {**supervision, "channel": self.channel}
            for supervision in cut.get("supervisions") or []
            if self.channel in _as_list(supervision.get("channel", 0))
        ]
        return {**cut, "type": "MonoCut", "channel": self.channel, "supervisions": supervisions}


def _as_list(channel: Any) -> list[int]:
    return channel if isinstance(channel, list) else [channel]
