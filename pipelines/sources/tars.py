"""Tars of audio: their members with the places of their bytes, and where a tar breaks off."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from pipelines.sources.cuts import LONGEST_LINE
from pipelines.sources.pieces import TarSlice, is_file
from pipelines.storage.places import is_url, open_place
from tokenizer.errors import InputError


@contextlib.contextmanager
def open_tar(place: str) -> Iterator[tuple[tarfile.TarFile, BinaryIO]]:
    """A tar and the file it is read from.

    Raises:
        InputError: it is no uncompressed tar.
        OSError: it cannot be opened.
    """
    with open_place(place) as file:
        try:
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - closed below
        except (tarfile.TarError, EOFError) as error:
            raise InputError(f"{place}: not an uncompressed tar ({error}); unpack it, or leave it out") from error
        with tar:
            yield tar, file


def members_of(tar: tarfile.TarFile, file: BinaryIO) -> Iterator[tarfile.TarInfo | str]:
    """Every member but folders and hidden files, in order, lazily; at last what is wrong where the tar breaks off."""
    try:
        while member := tar.next():
            tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every member otherwise
            if not member.isdir() and not member.name.rpartition("/")[2].startswith("."):
                yield member
    except (tarfile.TarError, EOFError) as error:
        yield f"breaks off at byte {tar.offset} ({error})"
        return
    file.seek(tar.offset)  # tarfile takes any block that is no header for the end
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        yield f"breaks off at byte {tar.offset} (no member follows, and no end mark)"


def slice_of(place: str, member: tarfile.TarInfo) -> TarSlice:
    """Where the bytes of a member are; of a link none, so that it leads nowhere."""
    return TarSlice(place, member.offset_data, member.size if is_file(member) else 0)


def tar_source(place: str, name: str) -> dict[str, Any]:
    """A Lhotse source for a member of a tar, as fsspec names it."""
    return {"type": "url", "source": f"tar://{name}::{place if is_url(place) else f'file://{place}'}"}


def content_of(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a small member. Raises ValueError where it is a link, too large, or breaks off."""
    if not is_file(member) or member.size > LONGEST_LINE:
        raise ValueError(
            f"{member.name!r} in it is a link or a folder, no file, or larger than {LONGEST_LINE >> 20} MiB"
        )
    file = tar.extractfile(member)
    try:
        content = file.read() if file else b""
    except tarfile.TarError:
        content = b""
    if len(content) != member.size:
        raise ValueError(f"{member.name!r} in it breaks off")
    return content
