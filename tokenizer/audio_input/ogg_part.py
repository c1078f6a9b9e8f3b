"""A few seconds out of a long Ogg file with one audio stream, behind a URL, without reading the whole file.

Each page says at which sample it ends, so a few looks find the pages that hold these seconds. The stream's first pages
followed by these are an Ogg file of their own. libsndfile decodes the same samples from it, bit for bit, as from the
whole file.
"""

from __future__ import annotations

import bisect
import struct
import threading
from typing import NamedTuple

from tokenizer.audio_input.byte_source import ByteSource
from tokenizer.audio_input.contents import BadAudio
from tokenizer.audio_input.ogg import LONGEST_PAGE, TAIL_BYTES, page_at

LOOK_BYTES = 1 << 13
HEADER_BYTES = 27 + 255  # of a page, at most
BEFORE_VORBIS = 2 * 8192  # samples to read before the first wanted one: two blocks
BEFORE_OPUS = 3840 + 5760 + 48000
"""The same for Opus: the 80 ms that libsndfile decodes in advance, a packet, and a page of a second. A decoder of Opus
remembers where it began, and libsndfile begins at the page after one that ends before these 80 ms."""
NEAR = 1.0  # seconds: a page that ends so little before the wanted sample is near enough to begin with
AFTER = 3 * 48000  # samples before the end of a part of which the pages are kept: the next cut often begins there
LOOKS = 40
OPUS_RATE = 48000


class _Bound(NamedTuple):
    """A byte at which a page ends, and the sample (granule) that it ends with."""

    granule: int
    offset: int


class OggMap:
    """What is known of one file: its first pages, and where some others end. It may be kept for further cuts."""

    def __init__(self, source: ByteSource) -> None:
        data, at, granule = b"", 0, 0
        while granule <= 0:
            page = page_at(data, at)
            if page is None and (more := source.read_at(len(data), max(LOOK_BYTES, len(data) // 2))):
                data += more  # more each time: comments with a picture go on for many pages
                continue
            if not page:
                raise BadAudio("damaged", f"the bytes at {at} are no whole Ogg page")
            granule, end = _granule(page), at + len(page)
            at = end if granule <= 0 else at
        self.head = data[:at]
        packet, self.serial = self.head[27 + self.head[26] :], self.head[14:18]
        self.is_opus = packet.startswith(b"OpusHead")
        self.skip = struct.unpack("<H", packet[10:12])[0] if self.is_opus else 0
        self.bounds = [_Bound(0, at)]
        self.longest_page = LOOK_BYTES // 2  # bytes, of those that were met
        self.lock = threading.Lock()
        tail = source.read_at(max(0, source.size - TAIL_BYTES), TAIL_BYTES)
        last = tail.rfind(b"OggS\0")
        if last < 0 or last + 14 > len(tail):
            raise BadAudio("damaged", f"no Ogg page in the last {TAIL_BYTES} bytes")
        self.add(_Bound(_granule(tail[last:]), source.size))

    def add(self, bound: _Bound) -> None:
        with self.lock:
            place = bisect.bisect_left(self.bounds, bound)
            if bound.granule > 0 and bound not in self.bounds[place : place + 1]:
                self.bounds.insert(place, bound)

    def around(self, granule: int) -> tuple[_Bound, _Bound | None]:
        """The last known bound up to a sample, and the next one."""
        with self.lock:
            place = bisect.bisect_right(self.bounds, (granule, 1 << 62))
            return self.bounds[place - 1], self.bounds[place] if place < len(self.bounds) else None


class FarOgg:
    """The bytes of such a file, with its map."""

    def __init__(self, source: ByteSource, known: OggMap) -> None:
        self._source, self.size, self._map = source, source.size, known

    def read_at(self, offset: int, size: int) -> bytes:
        return self._source.read_at(offset, size)

    def close(self) -> None:
        self._source.close()

    def part(self, start: int, frames: int, rate: int) -> tuple[bytes, int]:
        """An Ogg file that holds `frames` frames from frame `start` on, and the number of the last frame in it (without
        what the decoder drops at the beginning).

        Raises:
            BadAudio: pages in there are lost or damaged.
        """
        scale = OPUS_RATE // rate if self._map.is_opus else 1
        before = BEFORE_OPUS if self._map.is_opus else BEFORE_VORBIS
        while True:
            begin = self._begin(max(0, start * scale + self._map.skip - before), rate * scale)
            pages, granule, count = self._pages(begin, (start + frames) * scale + self._map.skip)
            if count > 1 or begin == self._map.bounds[0]:
                return self._map.head + pages, (granule - self._map.skip) // scale
            before += rate * scale  # a decoder cannot tell the first sample of a stream's last page alone

    def _begin(self, granule: int, rate: int) -> _Bound:
        """A bound a little before a sample."""
        least, most = self._map.bounds[0].offset, self.size
        for look in range(LOOKS):
            low, high = self._map.around(granule)
            least = max(least, low.offset)
            most = min(most, high.offset) if high else most
            if high is None or granule <= low.granule + NEAR * rate or most - least <= LOOK_BYTES:
                return low
            each = (high.offset - low.offset) / (high.granule - low.granule)  # bytes a sample
            if granule - low.granule <= 3 * self._map.longest_page / each:
                return low
            guess = low.offset + int(each * (granule - low.granule)) - 2 * self._map.longest_page
            guess = min(max(guess if look % 3 < 2 else (least + most) // 2, least), most - 1)
            found = self._next_bound(guess)
            if found is None or found.offset >= most:
                most = guess
            else:
                self._map.add(found)
        return low

    def _more(self, at: int, size: int = LOOK_BYTES) -> bytes:
        """More bytes from `at` on. Raises BadAudio if there are none: the file was replaced by a shorter one."""
        more = self._source.read_at(at, size)
        if not more:
            raise BadAudio("truncated", f"the file ends at byte {at}; it had {self.size} bytes when it was opened")
        return more

    def _next_bound(self, at: int) -> _Bound | None:
        """The end of the first page that begins at or after `at`; only its header is read."""
        data, found = b"", -1
        while len(data) < 2 * LONGEST_PAGE and at + len(data) < self.size:
            data += self._more(at + len(data))
            while (found := data.find(b"OggS\0", found + 1)) >= 0:
                header = data[found : found + HEADER_BYTES]
                if not _page_size(header):  # its end is still to be read
                    break
                size = _page_size(header)
                if header[14:18] == self._map.serial and _granule(header) > 0:
                    self._map.longest_page = max(self._map.longest_page, size)
                    return _Bound(_granule(header), at + found + size)
            found = (found if found >= 0 else max(0, len(data) - 4)) - 1
        return None

    def _pages(self, begin: _Bound, granule: int) -> tuple[bytes, int, int]:
        """The pages from a bound to the one in which a sample lies, the sample that this ends with, and how many."""
        _, high = self._map.around(granule)
        last = high or self._map.bounds[-1]
        share = (granule - begin.granule) / max(1, last.granule - begin.granule)
        size = max(LOOK_BYTES, int(min(1.0, share) * (last.offset - begin.offset)))
        data, at, ends, number = self._source.read_at(begin.offset, size), 0, begin.granule, None
        count = 0
        while ends < granule and begin.offset + at < self.size:
            page = page_at(data, at)
            if page is None and begin.offset + len(data) < self.size:
                wanted = _page_size(data[at : at + HEADER_BYTES]) or self._map.longest_page
                data += self._more(begin.offset + len(data), max(1, at + wanted - len(data)))
                continue
            if not page:
                raise BadAudio("damaged", f"the bytes at {begin.offset + at} are no whole Ogg page")
            follows = struct.unpack("<I", page[18:22])[0]
            if number is not None and follows != number + 1:
                raise BadAudio("damaged", f"{follows - number - 1} Ogg pages are lost before byte {begin.offset + at}")
            number, at, count = follows, at + len(page), count + 1
            ends = max(ends, _granule(page))
            self._map.longest_page = max(self._map.longest_page, len(page))
            if ends > granule - AFTER:
                self._map.add(_Bound(ends, begin.offset + at))
        return data[:at], ends, count


def _page_size(header: bytes) -> int:
    """Bytes of the page with this header; 0 where the header is not whole."""
    if len(header) < 27 or len(header) < 27 + header[26]:
        return 0
    return 27 + header[26] + sum(header[27 : 27 + header[26]])


def _granule(page: bytes) -> int:
    return struct.unpack("<q", page[6:14])[0]
