"""What to tokenize: manifests, Shar folders, folders and globs of audio, all as one lazy stream of Lhotse cuts.

Cuts stay the JSON dictionaries they are in the manifest: everything they carry reaches the shards untouched, and
planning millions of them costs no more than parsing JSON.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizer.audio import AUDIO_SUFFIXES
from tokenizer.errors import InputError

MANIFEST_SUFFIXES = (".jsonl", ".jsonl.gz")
CUT_TYPES = ("MonoCut", "MultiCut", "MixedCut", "Cut")  # the last is MonoCut's name in manifests before Lhotse 0.8


@dataclass(frozen=True)
class TarSlice:
    """Encoded audio of one cut inside a Shar tar: `size` bytes from byte `offset` of the file `path`."""

    path: str
    offset: int
    size: int


@dataclass(frozen=True)
class SourceCut:
    """A cut as the manifest has it, with recording paths resolved. `audio` is set for cuts of a Shar folder."""

    cut: dict[str, Any]
    audio: TarSlice | None = None


@dataclass
class PathRule:
    """Makes relative recording paths of one manifest absolute.

    They are relative to the working directory or to the manifest's folder: the first recording that exists in either
    decides for the whole manifest, so that a manifest of millions of lines does not cost millions of file look-ups.
    """

    manifest_folder: str
    base: str | None = None

    def resolve(self, path: str) -> str:
        if os.path.isabs(path):
            return path
        if self.base is None:
            bases = (os.getcwd(), self.manifest_folder)
            self.base = next((base for base in bases if os.path.exists(os.path.join(base, path))), None)
        return os.path.normpath(os.path.join(self.base or self.manifest_folder, path))


def find_inputs(pattern: str) -> list[Path]:
    """The manifests, folders or audio files that `pattern` names: itself, or every match of a glob, sorted.

    Raises:
        InputError: nothing is there.
    """
    path = Path(pattern)
    if path.exists():
        return [path.absolute()]
    matches = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else []
    if not matches:
        raise InputError(
            f"{pattern}: nothing there; expected a Lhotse manifest (.jsonl, .jsonl.gz), a Shar folder, a folder of "
            "audio files, or a quoted glob of these"
        )
    return [Path(match).absolute() for match in matches]


def read_cuts(inputs: list[Path]) -> Iterator[SourceCut]:
    """Every cut of every input, in order, lazily.

    Raises:
        InputError: a file is no manifest, or one of its lines is no cut or recording (the line is named).
    """
    for path in inputs:
        if path.is_dir():
            yield from _read_shar(path) if is_shar(path) else _read_audio_folder(path)
        elif path.name.endswith(MANIFEST_SUFFIXES):
            rule = PathRule(str(path.parent))
            for where, line in read_json_lines(path):
                yield SourceCut(_as_cut(line, where, rule))
        elif path.suffix.lower() in AUDIO_SUFFIXES:
            yield SourceCut(_audio_file_cut(path, _id_beside(path, inputs)))
        else:
            raise InputError(
                f"{path}: neither a manifest ({', '.join(MANIFEST_SUFFIXES)}) nor audio "
                f"({', '.join(sorted(AUDIO_SUFFIXES))}); convert other manifests with `lhotse copy IN OUT.jsonl.gz`"
            )


def is_shar(folder: Path) -> bool:
    """Whether a folder is in Lhotse Shar format (it has `cuts.*.jsonl` files)."""
    return bool(_shar_field(folder, "cuts"))


def content_digest(inputs: list[Path]) -> str:
    """A sha256 that changes when the list of cuts may have: over the bytes of manifests, and over names and sizes
    (not the content) of audio files and of Shar tars."""
    digest = hashlib.sha256()
    for path in inputs:
        if path.is_dir() and not is_shar(path):
            files = audio_files(path)
        else:
            files = iter(sorted(file for file in path.iterdir() if file.is_file())) if path.is_dir() else iter([path])
        for file in files:
            name = os.fsencode(file.relative_to(path)) if path.is_dir() else os.fsencode(file.name)
            digest.update(b"%s\0%d\n" % (name, file.stat().st_size))
            if file.name.endswith(MANIFEST_SUFFIXES):
                with open(file, "rb") as stream:
                    while block := stream.read(1 << 20):
                        digest.update(block)
    return digest.hexdigest()


def audio_files(folder: Path) -> Iterator[Path]:
    """Audio files under `folder`, recursively, in a fixed order; hidden files and folders are left out."""
    for root, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES:
                yield Path(root, name)


def _refuse(error: OSError) -> None:
    """For `os.walk`, which otherwise leaves out what it may not read."""
    raise error


def recordings(cut: dict[str, Any]) -> list[dict[str, Any]]:
    """The recordings a cut refers to: none or one, or those of all tracks of a mix."""
    if cut.get("type") == "MixedCut":
        return [found for track in cut["tracks"] for found in recordings(track["cut"])]
    return [cut["recording"]] if cut.get("recording") else []


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file, line N", object) of every line of a .jsonl or .jsonl.gz file.

    Raises:
        InputError: a line is not a JSON object, or the compression is damaged; file and line are named.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise ValueError(f"expected a JSON object, found {type(value).__name__}")
                yield f"{path}, line {number}", value
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged gzip after line {number} ({error}); copy or make it again") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}, line {number}: {error}; mend or remove this line") from error


def _as_cut(item: dict[str, Any], where: str, rule: PathRule) -> dict[str, Any]:
    """A manifest line as a cut with resolved paths; a recording becomes the cut of all of it."""
    if "sources" in item and "type" not in item:
        item = _whole_recording(item)
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
                if source["type"] == "file":
                    source["source"] = rule.resolve(source["source"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{where}: cut {item['id']} is not as Lhotse writes it (at {error}); mend this line"
        ) from error
    return item


def _whole_recording(recording: dict[str, Any]) -> dict[str, Any]:
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


def _read_audio_folder(folder: Path) -> Iterator[SourceCut]:
    found = False
    for path in audio_files(folder):
        found = True
        yield SourceCut(_audio_file_cut(path, path.relative_to(folder).as_posix()))
    if not found:
        raise InputError(
            f"{folder}: no audio below it and no Shar manifests in it; expected files ending in "
            f"{', '.join(sorted(AUDIO_SUFFIXES))}"
        )


def _id_beside(path: Path, inputs: list[Path]) -> str:
    """The id of an audio file given by name or glob: its path below the folder all inputs share."""
    shared = os.path.commonpath([other.parent for other in inputs])
    return path.relative_to(shared).as_posix()


def _audio_file_cut(path: Path, cut_id: str) -> dict[str, Any]:
    """The cut of a whole audio file. A file whose header cannot be read becomes a cut of no length, and tokenizing
    it says why."""
    import soundfile

    try:
        header = soundfile.info(str(path))
        rate, frames, channels = header.samplerate, header.frames, list(range(header.channels))
    except (soundfile.LibsndfileError, OSError):
        rate, frames, channels = 0, 0, [0]
    recording = {
        "id": cut_id,
        "sources": [{"type": "file", "channels": channels, "source": str(path)}],
        "sampling_rate": rate,
        "num_samples": frames,
        "duration": frames / rate if rate else 0.0,
        "channel_ids": channels,
    }
    return _whole_recording(recording)


def _shar_field(folder: Path, name: str) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.split(".")[0] == name and ".jsonl" in path.name)


def _read_shar(folder: Path) -> Iterator[SourceCut]:
    """Cuts of a Shar folder; where it has `recording.*.tar`, each with the place of its audio in there."""
    rule = PathRule(str(folder))
    manifests = _shar_field(folder, "cuts")
    tars = sorted(path for path in folder.iterdir() if path.name.split(".")[0] == "recording" and ".tar" in path.name)
    if tars and len(tars) != len(manifests):
        raise InputError(f"{folder}: {len(manifests)} cuts files but {len(tars)} recording tars; a shard is incomplete")
    for number, manifest in enumerate(manifests):
        audio = _recordings_in_tar(tars[number]) if tars else None
        for where, line in read_json_lines(manifest):
            cut, piece = _as_cut(line, where, rule), None
            if audio is not None:
                member, recording, piece = next(audio, (None, None, None))
                if member != cut["id"]:
                    raise InputError(f"{where}: cut {cut['id']}, but its turn in {tars[number]} has {member}")
                if recording is not None:
                    cut["recording"] = recording
            yield SourceCut(cut, piece)


def _recordings_in_tar(path: Path) -> Iterator[tuple[str, dict[str, Any] | None, TarSlice | None]]:
    """(cut id, recording, place of its audio) of every pair in a Shar tar; the last two None for a placeholder."""
    try:
        with tarfile.open(path, "r:") as tar:
            for data in tar:
                meta = tar.next()
                stem = data.name.rpartition(".")[0]
                if data.name.endswith(".nodata") or meta is None:
                    yield stem, None, None
                    continue
                content = tar.extractfile(meta)
                assert content is not None
                yield stem, json.load(content), TarSlice(str(path), data.offset_data, data.size)
                tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every member otherwise
    except (tarfile.TarError, ValueError) as error:
        raise InputError(f"{path}: not a Shar tar ({error}); expected an uncompressed tar of audio and JSON") from error
