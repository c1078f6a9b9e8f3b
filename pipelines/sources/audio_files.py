"""Plain audio files as cuts: folders, globs and single files. Their first bytes say what they are, not their names."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator

from pipelines.sources.cuts import SourceCut
from pipelines.sources.hugging_face import read_parquet
from pipelines.sources.webdataset import read_webdataset
from pipelines.sources.whole_audio import whole_audio_cut
from pipelines.storage.places import files_below, is_url, join, open_place, parent
from tokenizer.audio_input.kinds import AUDIO_SUFFIXES, HEAD_BYTES, is_audio_file, kind_of
from tokenizer.errors import InputError

log = logging.getLogger(__name__)

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
        with open_place(place) as file:
            return kind_of(file.read(HEAD_BYTES)) is not None
    except OSError:
        return False


def audio_files(folder: str) -> Iterator[str]:
    """Paths of the files below `folder` with audio in them, relative to it, in a fixed order; without hidden ones."""
    return (name for name in files_below(folder) if is_archive(name) or is_audio(join(folder, name)))


def read_audio_folder(folder: str) -> Iterator[SourceCut]:
    """A cut for every audio file below `folder`, whose id is its path in there, and the cuts of archives. At the end
    one line of the log says how many other files were passed over. Raises InputError when there is no audio."""
    found, others = False, Counter[str]()
    for name in files_below(folder):
        if is_archive(name):
            found = True
            yield from read_archive(join(folder, name))
        elif is_audio(join(folder, name)):
            found = True
            yield audio_file_cut(join(folder, name), name)
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


def id_beside(place: str, inputs: list[str]) -> str:
    """The id of an audio file given by name or glob: its path below the folder all inputs share."""
    return os.path.relpath(place, os.path.commonpath([parent(other) for other in inputs])).replace(os.sep, "/")


def audio_file_cut(place: str, cut_id: str) -> SourceCut:
    """The cut of a whole audio file. A file that cannot be read becomes a cut of no length, and tokenizing it says
    why."""
    source = {"type": "url" if is_url(place) else "file", "source": place}
    return whole_audio_cut(cut_id, source)
