"""Files behind URLs, read in ranges: exactly what is known to be wanted, and small pieces where that is not known.

fsspec's files read blocks of 5 MB and keep one of them, so ten cuts of an hour of FLAC fetch it three times over.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from pipelines.storage.ahead import in_order
from pipelines.storage.places import is_url, open_file_system, open_place, size_of
from pipelines.storage.redirects import origin
from pipelines.storage.retries import retried

SMALLEST, LARGEST = 8 << 10, 4 << 20  # bytes of a request that reads on
KEPT = 6  # pieces of a file, for decoders that go back and forth between two places
HEADS = 256  # files whose first bytes and size are remembered
HEAD_BYTES = 1 << 16
SMALL_FILE = 1 << 20  # bytes of a file that is fetched whole
OPENED_AHEAD = 16  # of those
WITHOUT_RANGES = 32 << 20  # bytes of a file on a server that answers with all of it


def fetch(place: str, begin: int, end: int, hosts: tuple[str, ...] | None = None, size: int | None = None) -> bytes:
    """Bytes [begin, end) of a file behind a URL by one request; fewer at its end. `size` of the whole file, which HTTP
    needs.

    Raises:
        FileNotFoundError, and other errors of the request.
        OSError: the server answers no ranges, and the file is too large to be fetched whole for each.
    """
    files, path = open_file_system(place, hosts)

    def request() -> bytes:
        if _answers_ranges(place):
            return files.cat_file(path, start=begin, end=end)
        try:
            with files.open(
                path, "rb", size=size, cache_type="readahead", block_size=max(SMALLEST, end - begin)
            ) as file:
                file.seek(begin)
                return file.read(end - begin)
        except ValueError as error:  # the server has answered with the whole file
            if size is None or size > WITHOUT_RANGES:
                raise OSError(f"its server answers no requests for a part of it ({error}); copy it first") from error
            return files.cat_file(path)[begin:end]

    return retried(request, origin(place)) if end > begin else b""


def _answers_ranges(place: str) -> bool:
    """A server of HTTP may answer with the whole file, which fsspec's `cat_file` takes for the range."""
    return not place.rpartition("::")[2].lower().startswith(("http://", "https://"))


@dataclass(frozen=True)
class Head:
    """The first bytes of a file behind a URL, and its size."""

    data: bytes
    size: int


_heads: OrderedDict[tuple[str, tuple[str, ...] | None], Head] = OrderedDict()
_tails: OrderedDict[tuple[str, tuple[str, ...] | None, int], bytes] = OrderedDict()
_heads_lock = threading.Lock()


def head_of(place: str, first: int = HEAD_BYTES, hosts: tuple[str, ...] | None = None) -> Head:
    """The first bytes of a file and its size: one request where the file has fewer than `first` bytes, two otherwise.
    Those of the latest `HEADS` larger files are remembered.

    Raises:
        FileNotFoundError, and other errors of the requests.
    """
    with _heads_lock:
        known = _heads.get((place, hosts))
        if known is not None:
            _heads.move_to_end((place, hosts))
            return known
    data = None
    if _answers_ranges(place):
        with contextlib.suppress(ValueError, IndexError):  # an empty file has no range
            data = _first(place, first, hosts)
    if data is not None and len(data) < first:
        return Head(data, len(data))
    size = size_of(place, hosts)
    head = Head(fetch(place, 0, min(first, size), hosts, size) if data is None else data, size)
    with _heads_lock:
        _heads[place, hosts] = Head(head.data[:HEAD_BYTES], size)
        while len(_heads) > HEADS:
            _heads.popitem(last=False)
    return head


def tail_of(place: str, size: int, hosts: tuple[str, ...] | None = None) -> bytes:
    """The last `HEAD_BYTES` of a file of this size; those of the latest `HEADS` files are remembered."""
    with _heads_lock:
        known = _tails.pop((place, hosts, size), None)
    data = fetch(place, size - HEAD_BYTES, size, hosts, size) if known is None else known
    with _heads_lock:
        _tails[place, hosts, size] = data
        while len(_tails) > HEADS:
            _tails.popitem(last=False)
    return data


def _first(place: str, first: int, hosts: tuple[str, ...] | None) -> bytes | None:
    """The first bytes; None where the store refuses the range, as it does of an empty file."""
    try:
        return fetch(place, 0, first, hosts)
    except FileNotFoundError:
        raise
    except OSError:
        if size_of(place, hosts) == 0:
            return b""
        raise


def open_each(places: Sequence[str]) -> Iterator[BinaryIO]:
    """Files that are read from end to end one after the other, opened in order, lazily. Behind URLs those of up to 1 MB
    are fetched by one request each, several at a time, while earlier ones are being read. Raises as `open_place` does.
    """

    def opened(place: str) -> BinaryIO:
        if not is_url(place):
            return open_place(place)
        head = head_of(place, SMALL_FILE)
        return io.BytesIO(head.data) if len(head.data) == head.size else open_place(place)

    return in_order(opened, places, OPENED_AHEAD) if places and is_url(places[0]) else map(opened, places)


class RangedBytes:
    """Bytes [offset, offset + size) of a file behind a URL.

    Where reads go on from each other, requests grow: half of what is left of `expected`, then a sixteenth of what the
    run has read. Where reads jump, as in a search, they are small. So little is fetched beyond what is wanted, in few
    requests.

    Args:
        expected: bytes that will be read in one go, as far as the caller can tell.
        head: the first bytes of the file, if they are there.
        tail: its last bytes.
        exact: nothing is fetched beyond what is asked for: the reader knows itself how much it wants.
    """

    def __init__(
        self,
        place: str,
        offset: int,
        size: int,
        expected: int = 0,
        head: bytes = b"",
        hosts: tuple[str, ...] | None = None,
        tail: bytes = b"",
        exact: bool = False,
    ) -> None:
        self.size = size
        self._place, self._offset, self._hosts, self._expected = place, offset, hosts, expected
        self._whole = None if offset else size  # of the file
        self._least = 0 if exact else min(max(SMALLEST, expected // 32), HEAD_BYTES)
        self._exact = exact
        self._head, self._tail = head, tail
        self._pieces: OrderedDict[int, bytes] = OrderedDict()
        self._runs: dict[int, int] = {}  # end of a piece -> bytes that were read on up to there

    def for_looks(self) -> RangedBytes:
        """The same bytes for somebody who looks here and there, and does not read on."""
        return RangedBytes(self._place, self._offset, self.size, 0, self._head, self._hosts, self._tail)

    def exactly(self) -> RangedBytes:
        """The same bytes for somebody who asks for all that he wants."""
        return RangedBytes(self._place, self._offset, self.size, 0, self._head, self._hosts, self._tail, exact=True)

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end."""
        end = min(offset + size, self.size)
        found: list[bytes] = []
        while offset < end:
            data = self._kept(offset, end) or self._fetched(offset, end)
            if not data:
                break
            found.append(data)
            offset += len(data)
        return found[0] if len(found) == 1 else b"".join(found)

    def close(self) -> None:
        self._pieces.clear()

    def _kept(self, offset: int, end: int) -> bytes:
        if offset < len(self._head):
            return self._head[offset:end]
        if offset >= self.size - len(self._tail):
            return self._tail[offset - self.size + len(self._tail) :][: end - offset]
        for begin, piece in self._pieces.items():
            if begin <= offset < begin + len(piece):
                self._pieces.move_to_end(begin)
                return piece[offset - begin : end - begin]
        return b""

    def _fetched(self, offset: int, end: int) -> bytes:
        run = self._runs.pop(offset, 0)
        ahead = 0
        if run and not self._exact:
            ahead = max(self._least, (self._expected - run) // 2 if run < self._expected else run // 16)
        last = min(self.size, max(end, offset + min(LARGEST, max(ahead, self._least))))
        data = fetch(self._place, self._offset + offset, self._offset + last, self._hosts, self._whole)
        self._pieces[offset] = data
        self._runs[offset + len(data)] = run + len(data)
        while len(self._pieces) > KEPT:
            begin, piece = self._pieces.popitem(last=False)
            self._runs.pop(begin + len(piece), None)
        return data[: end - offset]
