"""Plain audio files as cuts: folders, globs and single files. Their first bytes say what they are, not their names."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterator

from pipelines.sources.audio_bytes import open_reader
from pipelines.sources.cuts import SourceCut, whole_recording
from pipelines.storage.ahead import in_order
from pipelines.storage.places import files_below, is_url, join, parent
from pipelines.storage.ranges import head_of
from tokenizer.audio_input.kinds import AUDIO_SUFFIXES, HEAD_BYTES, is_audio_file, kind_of
from tokenizer.errors import InputError

log = logging.getLogger(__name__)

FILES_AT_A_TIME = 16  # behind a URL, where each takes a request or two
NAMED = 5  # suffixes of what was passed over that are named


def is_audio(place: str) -> bool:
    """Whether a file holds audio by its first bytes, or by its name is meant to: then reading it says what is wrong."""
    if not is_url(place):
        return is_audio_file(place)
    if os.path.splitext(place)[1].lower() in AUDIO_SUFFIXES:
        return True
    try:
        return kind_of(head_of(place).data[:HEAD_BYTES]) is not None
    except OSError:
        return False


def audio_files(folder: str) -> Iterator[str]:
    """Paths of the audio files below `folder`, relative to it, in a fixed order; hidden ones are left out."""
    return (name for name in files_below(folder) if is_audio(join(folder, name)))


def read_audio_folder(folder: str) -> Iterator[SourceCut]:
    """A cut for every audio file below `folder`; its id is its path in there. At the end one line of the log says how
    many other files were passed over. Raises InputError when there is no audio."""
    found, others = False, Counter[str]()

    def read(name: str) -> SourceCut | None:
        place = join(folder, name)
        return audio_file_cut(place, name) if is_audio(place) else None

    names, again = itertools.tee(files_below(folder))
    for name, cut in zip(
        names, in_order(read, again, FILES_AT_A_TIME) if is_url(folder) else map(read, again), strict=True
    ):
        if cut is not None:
            found = True
            yield cut
        else:
            others[os.path.splitext(name)[1].lower() or "no suffix"] += 1
    passed_over = _counted(others)
    if not found:
        raise InputError(
            f"{folder}: no audio below it and no Shar manifests in it{f' but {passed_over}' if others else ''}; "
            "expected WAV, FLAC, Ogg, MP3, M4A or other sound files"
        )
    if others:
        log.warning("%s: passed over %s, in which there is no audio", folder, passed_over)


def _counted(others: Counter[str]) -> str:
    """How many files of which suffixes."""
    most = others.most_common(NAMED)
    named = [f"{number} {suffix}" for suffix, number in most]
    if rest := others.total() - sum(number for _, number in most):
        named.append(f"{rest} more")
    return f"{others.total()} {'file' if others.total() == 1 else 'files'} ({', '.join(named)})"


def folder_of_all(places: list[str]) -> str:
    """The folder that all places share."""
    try:
        return os.path.commonpath({parent(place) for place in places})
    except ValueError:  # paths and URLs together, which no glob gives
        return ""


def id_below(folder: str, place: str) -> str:
    """The id of an audio file given by name or glob: its path below the folder that all inputs share."""
    return os.path.relpath(place, folder or None).replace(os.sep, "/")


def audio_file_cut(place: str, cut_id: str) -> SourceCut:
    """The cut of a whole audio file. A file that cannot be read becomes a cut of no length, and tokenizing it says
    why."""
    source = {"type": "url" if is_url(place) else "file", "source": place}
    try:
        reader, data = open_reader(source, None, quick=True, share=0.0)
        with contextlib.closing(data):
            rate, frames, channels = reader.sample_rate, reader.frames(), list(range(reader.channels))
    except Exception:  # of the audio, the system or a network: reading the cut meets it again, and tells
        rate, frames, channels = 0, 0, [0]
    recording = {
        "id": cut_id,
        "sources": [{"type": source["type"], "channels": channels, "source": place}],
        "sampling_rate": rate,
        "num_samples": frames,
        "duration": frames / rate if rate else 0.0,
        "channel_ids": channels,
    }
    return SourceCut(whole_recording(recording))
