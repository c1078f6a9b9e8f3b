"""Ogg (Vorbis, Opus): the streams of a file, which may be several one after another, and pages that are lost.

Source: RFC 3533. A page's checksum is a CRC-32 that takes the bits of a byte in the other order than zlib's, so bytes
are mirrored first.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from tokenizer.audio_input.byte_source import ByteSource, Window
from tokenizer.audio_input.contents import Contents, Damage, Stream
from tokenizer.audio_input.glances import SMALL_BYTES, is_one_stream

_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_AUDIO = {b"\x01vorbis": "Vorbis", b"OpusHead": "Opus", b"\x7fFLAC": "FLAC", b"Speex   ": "Speex"}
CONTINUED, BEGIN, END = 1, 2, 4  # flags of a page


@dataclass
class _Link:
    """What lies between the first pages of one set of streams and those of the next: one audio stream, if any."""

    begin: int
    serials: dict[int, str] = field(default_factory=dict)  # to what is in it; "" for no audio
    rate: int = 0
    skip: int = 0  # samples of Opus at 48 kHz that come first and are dropped
    numbers: dict[int, int] = field(default_factory=dict)  # of the last page of each
    granule: int = 0
    ended: bool = False
    has_data: bool = False  # a page of samples came; before it pages may be missing, where a live stream was joined


LONGEST_PAGE = 27 + 255 * 256  # bytes
TAIL_BYTES = 1 << 16  # that hold the last page


def examine_ogg(source: ByteSource, quick: bool = False) -> Contents:
    """The streams of a file, with what is damaged or missing. `quick` takes it for one sound stream where its last
    page is the end of the stream that its first page begins, and a few looks in between find no other."""
    if quick and _one_stream(source):
        return Contents("Ogg", (Stream(((0, source.size),)),))
    links: list[_Link] = []
    damage: list[Damage] = []
    begins = True  # pages that begin a stream stand together
    seconds = 0.0
    for at, page, junk in _pages(source):
        flags, granule, serial, number = struct.unpack("<5xBqII", page[:22])
        if flags & BEGIN and not begins:
            seconds += _seconds(links[-1])
        if flags & BEGIN and (not links or not begins):
            links.append(_Link(at))
        begins = bool(flags & BEGIN)
        if not links:
            links.append(_Link(at))
        link = links[-1]
        if junk and len(links) + link.has_data > 1:
            damage.append(
                Damage("damaged", f"{junk} bytes at {at - junk} are no whole Ogg page", seconds + _seconds(link))
            )
        if begins:
            _begin(link, serial, page[27 + page[26] :])
        elif link.has_data and number != link.numbers.get(serial, number - 1) + 1 and not junk:
            lost = number - link.numbers[serial] - 1
            damage.append(Damage("damaged", f"{lost} Ogg pages are lost before byte {at}", seconds + _seconds(link)))
        link.numbers[serial] = number
        if link.serials.get(serial):
            link.has_data |= granule > 0
            link.ended |= bool(flags & END)
            link.granule = granule if granule >= 0 else link.granule
    return _contents(source, links, damage)


def _one_stream(source: ByteSource) -> bool:
    if source.size <= SMALL_BYTES:
        return False
    tail = source.read_at(max(0, source.size - TAIL_BYTES), TAIL_BYTES)
    last = tail[max(0, tail.rfind(b"OggS\0")) :]
    first = source.read_at(0, 27)
    ends = len(last) > 27 and bool(last[5] & END) and last[14:18] == first[14:18]
    return ends and is_one_stream(source, _begins_in, lambda data: _page_number(data, first[14:18]))


def _begins_in(data: bytes) -> bool:
    return re.search(rb"OggS\0[\2\3\6\7]", data) is not None


def _page_number(data: bytes, serial: bytes) -> int | None:
    """The number of the first page of a stream that begins in `data`, by its header alone: a page may be long."""
    at = -1
    while (at := data.find(b"OggS\0", at + 1)) >= 0:
        if data[at + 14 : at + 18] == serial and at + 22 <= len(data):
            return struct.unpack("<I", data[at + 18 : at + 22])[0]
    return None


def _contents(source: ByteSource, links: list[_Link], damage: list[Damage]) -> Contents:
    streams, seconds = [], 0.0
    ends = [*(link.begin for link in links[1:]), source.size]
    for link, end in zip(links, ends, strict=False):
        seconds += _seconds(link)
        if not any(link.serials.values()):
            continue
        streams.append(Stream(((link.begin, end - link.begin),)))
        if not link.ended:
            detail = "the Ogg stream has no end; was the copy or the recording broken off?"
            damage.append(Damage("truncated", f"{detail} {_seconds(link):.3f} s of it are there", seconds))
    return Contents("Ogg", tuple(streams) or (Stream(((0, source.size),)),), tuple(damage))


def _begin(link: _Link, serial: int, packet: bytes) -> None:
    kind = next((name for magic, name in _AUDIO.items() if packet.startswith(magic)), "")
    link.serials[serial] = kind
    if kind == "Opus" and len(packet) >= 12:
        link.rate, link.skip = 48000, struct.unpack("<H", packet[10:12])[0]
    elif kind == "Vorbis" and len(packet) >= 16:
        link.rate = struct.unpack("<I", packet[12:16])[0]


def _seconds(link: _Link) -> float:
    return max(0, link.granule - link.skip) / link.rate if link.rate else 0.0


def _pages(source: ByteSource) -> Iterator[tuple[int, bytes, int]]:
    """(offset, bytes, bytes before it that are no page) of each page whose checksum holds."""
    window, at, junk = Window(source), 0, 0
    while at < source.size:
        page = page_at(window.at(at, LONGEST_PAGE))
        if page:
            yield at, page, junk
            at, junk = at + len(page), 0
            continue
        found = window.find(b"OggS", at + 1)
        if found is None:
            return
        junk, at = junk + found - at, found


def page_at(data: bytes, at: int = 0) -> bytes | None:
    """The page that begins there and whose checksum holds; empty where none does, None where `data` ends within it."""
    if not b"OggS\0".startswith(data[at : at + 5]):
        return b""
    count = data[at + 26] if at + 26 < len(data) else 255
    size = 27 + count + sum(data[at + 27 : at + 27 + count])
    page = data[at : at + size]
    if at + 27 + count > len(data) or len(page) < size:
        return None
    return page if _checksum(page) == page[22:26] else b""


def _checksum(page: bytes) -> bytes:
    mirrored = (page[:22] + bytes(4) + page[26:]).translate(_MIRRORED)
    reverse = zlib.crc32(mirrored, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return reverse.to_bytes(4, "big").translate(_MIRRORED)
