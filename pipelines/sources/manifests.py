"""What to tokenize: manifests, Shar folders, folders and globs of audio, all as one lazy stream of Lhotse cuts.

An input is a place (see `pipelines.storage.places`): an absolute path or a URL.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat, tee
from typing import BinaryIO

from pipelines.sources.access import NO_MORE, Access
from pipelines.sources.audio_files import (
    FILES_AT_A_TIME,
    audio_file_cut,
    audio_files,
    folder_of_all,
    id_below,
    is_archive,
    is_audio,
    read_archive,
    read_audio_folder,
)
from pipelines.sources.blocks import Block, HereBlock, cuts_in, line_blocks
from pipelines.sources.cuts import SourceCut
from pipelines.sources.nemo import (
    is_nemo_manifest,
    is_nemo_set,
    manifests_of,
    read_nemo_manifest,
    read_nemo_set,
)
from pipelines.sources.shar import is_shar, shar_blocks
from pipelines.storage.ahead import in_order
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
    size_of,
    version_of,
    versions_in,
)
from pipelines.storage.ranges import open_each
from tokenizer.audio_input.kinds import AUDIO_SUFFIXES
from tokenizer.errors import InputError

MANIFEST_SUFFIXES = (".jsonl", ".jsonl.gz")
UNPACKED = 10  # times its size that a packed manifest has, about
NAMED_ONE_BY_ONE = 100  # matches of a glob


def find_inputs(pattern: str) -> list[str]:
    """The manifests, folders or audio files that `pattern` names: itself, or every match of a glob, sorted. A glob with
    more than `NAMED_ONE_BY_ONE` matches stays a glob, because inputs are stored with the dataset.

    Raises:
        InputError: nothing is there.
    """
    if exists(pattern):
        return [absolute(pattern)]
    found = matches(pattern) if _is_glob(pattern) else []
    if not found:
        raise InputError(
            f"{pattern}: nothing there; expected a Lhotse manifest (.jsonl, .jsonl.gz), a Shar folder, a folder of "
            "audio files, or a quoted glob of these"
        )
    return found if len(found) <= NAMED_ONE_BY_ONE else [absolute(pattern)]


def places_of(inputs: list[str]) -> list[str]:
    """The places that inputs (of `find_inputs`) stand for."""
    return [
        place for given in inputs for place in (matches(given) if _is_glob(given) and not exists(given) else [given])
    ]


def _is_glob(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def read_cuts(inputs: list[str], access: Access = NO_MORE) -> Iterator[SourceCut]:
    """Every cut of every input, in order, lazily; what `access` does not allow is marked, not left out.

    Raises:
        InputError: a file is no manifest, or one of its lines is no cut or recording (the line is named).
    """
    return cuts_in(read_blocks(inputs, access))


def read_blocks(inputs: list[str], access: Access = NO_MORE, apart: bool = False) -> Iterator[Block]:
    """The same cuts in blocks; `apart` where other processes will read them. Raises as `read_cuts` does."""
    places = places_of(inputs)
    shared = folder_of_all(places)

    def audio_at(place: str) -> SourceCut | None:
        is_named_so = place.lower().endswith(tuple(AUDIO_SUFFIXES))
        return audio_file_cut(place, id_below(shared, place)) if is_named_so and not is_folder(place) else None

    remote = len(places) > 1 and is_url(places[0])
    known = in_order(audio_at, places, FILES_AT_A_TIME) if remote else repeat(None)
    for place, cut in zip(places, known, strict=False):
        if cut is not None:
            yield HereBlock(partial(iter, [cut]))
        elif is_folder(place):
            if is_shar(place):
                yield from shar_blocks(place, access, apart)
            else:
                yield HereBlock(partial(read_nemo_set if is_nemo_set(place) else read_audio_folder, place))
        elif is_archive(place):
            yield HereBlock(partial(read_archive, place))
        elif is_nemo_manifest(place):
            yield HereBlock(partial(read_nemo_manifest, place, access))
        elif place.endswith(MANIFEST_SUFFIXES):
            yield from line_blocks(place, access)
        elif is_audio(place):
            yield HereBlock(partial(iter, [audio_file_cut(place, id_below(shared, place))]))
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
    for place in places_of(inputs):
        if is_folder(place) and is_shar(place):
            _digest_shar(place, digest.update)
            continue
        names, again = tee(_files_of(place))
        sizes = in_order(_size, (file for _, file in again), FILES_AT_A_TIME) if is_url(place) else None
        for name, file in names:
            digest.update(_name_and_size(name, next(sizes) if sizes else _size(file)))
            if _is_list_of_cuts(file):
                with open_place(file) as stream:
                    _read_through(stream, digest.update)
    return digest.hexdigest()


def _digest_shar(folder: str, update: Callable[[bytes], None]) -> None:
    """As of all files, with the sizes that the listing gives, and several lists of cuts at a time."""
    sizes = {name: size for name, (size, _) in versions_in(folder).items()}
    lists = [name for name in sizes if _is_list_of_cuts(join(folder, name))]
    opened, wanted = open_each([join(folder, name) for name in lists]), set(lists)
    for name, size in sizes.items():
        update(_name_and_size(name, size))
        if name in wanted:
            with next(opened) as stream:
                _read_through(stream, update)


def _name_and_size(name: str, size: int) -> bytes:
    return b"%s\0%d\n" % (os.fsencode(name), size)


def _is_list_of_cuts(file: str) -> bool:
    return file.endswith(MANIFEST_SUFFIXES) or is_nemo_manifest(file)


def _read_through(stream: BinaryIO, update: Callable[[bytes], None]) -> None:
    while block := stream.read(1 << 20):
        update(block)


def manifests_state(inputs: list[str]) -> str | None:
    """Text that changes when a manifest was written anew: sizes, and times or what a store calls a version. None where
    an input is a folder other than Shar, of which only a look at every file could tell."""
    digest = hashlib.sha256()
    for place in places_of(inputs):
        if is_folder(place) and not is_shar(place):
            return None
        versions = versions_in(place) if is_folder(place) else {"": (0, version_of(place))}
        for name, (_, version) in versions.items():
            if not version:
                return None
            digest.update(os.fsencode(join(place, name) if name else place) + b"\0" + version.encode() + b"\n")
    return digest.hexdigest()


def manifest_bytes(inputs: list[str]) -> int:
    """Bytes of the lists of cuts among the inputs, as large as they are unpacked, about."""
    total = 0
    for place in places_of(inputs):
        if place.endswith(MANIFEST_SUFFIXES):
            total += _unpacked(place, _size(place))
        elif is_folder(place) and is_shar(place):
            sizes = versions_in(place)
            total += sum(_unpacked(name, size) for name, (size, _) in sizes.items() if name.startswith("cuts."))
    return total


def _unpacked(name: str, size: int) -> int:
    return size * (UNPACKED if name.endswith(".gz") else 1)


def _size(place: str) -> int:
    try:
        return size_of(place)
    except OSError:  # a link to nowhere is a cut that cannot be read, not the end of the run
        return -1


def _files_of(place: str) -> Iterator[tuple[str, str]]:
    """(name, place) of every file that an input is made of, other than Shar."""
    if not is_folder(place):
        yield name_of(place), place
    elif is_nemo_set(place):
        yield from ((name_of(manifest), manifest) for manifest in manifests_of(place))
        yield from ((name, join(place, name)) for name in names_in(place) if name.endswith(".tar"))
    else:
        for name in audio_files(place):
            yield name, join(place, name)
