"""Plain audio files as cuts: folders, globs and single files. Their first bytes say what they are, not their names."""

from __future__ import annotations

import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator

from pipelines.sources.cuts import SourceCut
from pipelines.sources.hugging_face import read_parquet
from pipelines.sources.webdataset import read_webdataset
from pipelines.sources.whole_audio import whole_audio_cut
from pipelines.storage.ahead import in_order
from pipelines.storage.places import files_below, is_url, join, parent
from pipelines.storage.ranges import head_of
from tokenizer.audio_input.kinds import AUDIO_SUFFIXES, HEAD_BYTES, is_audio_file, kind_of
from tokenizer.errors import InputError

log = logging.getLogger(__name__)

FILES_AT_A_TIME = 16  # behind a URL, where each takes a request or two
NAMED = 5  # suffixes of what was passed over that are named

ARCHIVES: dict[str, Callable[[str], Iterator[SourceCut]]] = {".tar": read_webdataset, ".parquet": read_parquet}
"""Files that hold the audio of many cuts, by suffix."""


def is_archive(name: str) -> bool:
    """Whether a file by its name holds the audio of many cuts."""
    return name.endswith(tuple(ARCHIVES))


def read_archive(place: str) -> Iterator[SourceCut]:
    """Every cut of an archive, in order, lazily. Raises InputError where it is not what its name says."""
    return next(read for suffix, read in ARCHIVES.items() if place.endswith(suffix))(place)


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
    """Paths of the files below `folder` with audio in them, relative to it, in a fixed order; without hidden ones."""
    return (name for name in files_below(folder) if is_archive(name) or is_audio(join(folder, name)))


def read_audio_folder(folder: str) -> Iterator[SourceCut]:
    """A cut for every audio file below `folder`, whose id is its path in there, and the cuts of archives. At the end
    one line of the log says how many other files were passed over. Raises InputError when there is no audio."""
    found, others = False, Counter[str]()

    def read(name: str) -> SourceCut | None:
        place = join(folder, name)
        return audio_file_cut(place, name) if not is_archive(name) and is_audio(place) else None

    names, again = itertools.tee(files_below(folder))
    for name, cut in zip(
        names, in_order(read, again, FILES_AT_A_TIME) if is_url(folder) else map(read, again), strict=True
    ):
        if is_archive(name):
            found = True
            yield from read_archive(join(folder, name))
        elif cut is not None:
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
    return whole_audio_cut(cut_id, source)
