"""What to tokenize: manifests, Shar folders, folders and globs of audio, all as one lazy stream of Lhotse cuts.

An input is a place (see `pipelines.storage.places`): an absolute path or a URL.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

from pipelines.sources.access import NO_MORE, Access
from pipelines.sources.audio_files import (
    audio_file_cut,
    audio_files,
    id_beside,
    is_archive,
    is_audio,
    read_archive,
    read_audio_folder,
)
from pipelines.sources.cuts import PathRule, SourceCut, as_cut, read_json_lines
from pipelines.sources.nemo import (
    is_nemo_manifest,
    is_nemo_set,
    manifests_of,
    read_nemo_manifest,
    read_nemo_set,
)
from pipelines.sources.shar import is_shar, read_shar
from pipelines.storage.places import (
    absolute,
    exists,
    is_folder,
    is_url,
    join,
    matches,
    name_of,
    names_in,
    open_place,
    parent,
    size_of,
)
from tokenizer.audio_input.kinds import AUDIO_SUFFIXES
from tokenizer.errors import InputError

MANIFEST_SUFFIXES = (".jsonl", ".jsonl.gz")


def find_inputs(pattern: str) -> list[str]:
    """The manifests, folders or audio files that `pattern` names: itself, or every match of a glob, sorted.

    Raises:
        InputError: nothing is there.
    """
    if exists(pattern):
        return [absolute(pattern)]
    found = matches(pattern) if any(sign in pattern for sign in "*?[") else []
    if not found:
        raise InputError(
            f"{pattern}: nothing there; expected a Lhotse manifest (.jsonl, .jsonl.gz), a Shar folder, a folder of "
            "audio files, or a quoted glob of these"
        )
    return found


def read_cuts(inputs: list[str], access: Access = NO_MORE) -> Iterator[SourceCut]:
    """Every cut of every input, in order, lazily; what `access` does not allow is marked, not left out.

    Raises:
        InputError: a file is no manifest, or one of its lines is no cut or recording (the line is named).
    """
    for place in inputs:
        if is_folder(place):
            if is_shar(place):
                yield from read_shar(place, access)
            else:
                yield from read_nemo_set(place) if is_nemo_set(place) else read_audio_folder(place)
        elif is_archive(place):
            yield from read_archive(place)
        elif is_nemo_manifest(place):
            yield from read_nemo_manifest(place, access)
        elif place.endswith(MANIFEST_SUFFIXES):
            rule, hosts = PathRule(parent(place), access), access.reachable(place)
            for where, line in read_json_lines(place):
                yield SourceCut(as_cut(line, where, rule), hosts=hosts)
        elif is_audio(place):
            yield audio_file_cut(place, id_beside(place, inputs))
        elif not is_url(place) and not os.path.isfile(place):
            raise InputError(
                f"{place}: is no file, but a pipe or a device; a manifest is read more than once, so write it to a "
                f"file whose name ends in {' or '.join(MANIFEST_SUFFIXES)} first"
            )
        else:
            raise InputError(
                f"{place}: neither a manifest ({', '.join(MANIFEST_SUFFIXES)}) nor audio "
                f"({', '.join(sorted(AUDIO_SUFFIXES))}), nor a tar or Parquet file of it; "
                "convert other manifests with `lhotse copy IN OUT.jsonl.gz`"
            )


def content_digest(inputs: list[str]) -> str:
    """A sha256 that changes when the list of cuts may have: over the bytes of manifests, and over names and sizes
    (not the content) of audio files, tars and Parquet files."""
    digest = hashlib.sha256()
    for place in inputs:
        for name, file in _files_of(place):
            digest.update(b"%s\0%d\n" % (os.fsencode(name), _size(file)))
            if file.endswith(MANIFEST_SUFFIXES) or is_nemo_manifest(file):
                with open_place(file) as stream:
                    while block := stream.read(1 << 20):
                        digest.update(block)
    return digest.hexdigest()


def _size(place: str) -> int:
    try:
        return size_of(place)
    except OSError:  # a link to nowhere is a cut that cannot be read, not the end of the run
        return -1


def _files_of(place: str) -> Iterator[tuple[str, str]]:
    """(name, place) of every file that an input is made of."""
    if not is_folder(place):
        yield name_of(place), place
    elif not is_shar(place) and is_nemo_set(place):
        yield from ((name_of(manifest), manifest) for manifest in manifests_of(place))
        yield from ((name, join(place, name)) for name in names_in(place) if name.endswith(".tar"))
    else:
        for name in names_in(place) if is_shar(place) else audio_files(place):
            yield name, join(place, name)
