"""FLAC: what STREAMINFO announces, and where another stream begins. Source: RFC 9639."""

from __future__ import annotations

from tokenizer.audio_input.byte_source import ByteSource, Window
from tokenizer.audio_input.contents import Contents, Part, Stream
from tokenizer.audio_input.glances import LOOK_BYTES, SMALL_BYTES, is_one_stream
from tokenizer.audio_input.tags import id3v2_size

_MARKERS = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")  # followed by STREAMINFO, the last block or not


def examine_flac(source: ByteSource, quick: bool) -> Contents:
    """The streams of a file; `quick` reads all its bytes only where a few looks do not show that it is one."""
    window = Window(source, LOOK_BYTES if quick else 1 << 20)
    begins = [id3v2_size(window.at(0, 10))]
    one = quick and source.size > SMALL_BYTES and is_one_stream(source, _begins_in, _frame_number)
    at = None if one else window.find(b"fLaC", begins[0] + 42)
    while at is not None:
        if window.at(at, 8) in _MARKERS:
            begins.append(at)
        at = window.find(b"fLaC", at + 4)
    ends = [*begins[1:], source.size]
    return Contents("FLAC", tuple(_stream(window, begin, end) for begin, end in zip(begins, ends, strict=True)))


def _stream(window: Window, begin: int, end: int) -> Stream:
    info = window.at(begin, 42)
    if len(info) < 42 or info[4] & 0x7F or begin + 42 > end:
        return Stream(((begin, end - begin),))
    frames = (info[21] & 15) << 32 | int.from_bytes(info[22:26], "big")
    bits = ((info[20] & 1) << 4 | info[21] >> 4) + 1
    md5 = info[26:42] if any(info[26:42]) else b""
    return Stream(((begin, end - begin),), frames or None, md5=md5, bits=bits)


def _begins_in(data: bytes) -> bool:
    return any(marker in data for marker in _MARKERS)


def _frame_number(data: bytes) -> int | None:
    """The number of the first frame that begins in `data`, or of its first sample where frames differ in size."""
    at = -1
    while (at := data.find(b"\xff", at + 1)) >= 0:
        head = data[at : at + 16]
        if len(head) < 16:
            return None
        if head[1] & 0xFE != 0xF8 or head[2] >> 4 == 0 or head[2] & 15 == 15 or head[3] & 1:
            continue
        length = max(1, 8 - (head[4] ^ 0xFF).bit_length())  # of the number, coded as in UTF-8
        end = 4 + length + {6: 1, 7: 2}.get(head[2] >> 4, 0) + {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
        if end < 16 and _crc8(head[:end]) == head[end]:
            number = head[4] & 0xFF >> length + (length > 1)
            for byte in head[5 : 4 + length]:
                number = number << 6 | byte & 63
            return number
    return None


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value << 1 ^ (0x107 if value & 0x80 else 0)
    return value


def of_unknown_length(stream: Stream, head: bytes) -> tuple[Part, ...]:
    """The parts of a stream with its first 42 bytes `head` saying no length: a decoder then goes on to the end."""
    ((begin, size),) = stream.parts
    return head[:21] + bytes((head[21] & 0xF0, 0, 0, 0, 0)) + head[26:42], (begin + 42, size - 42)
