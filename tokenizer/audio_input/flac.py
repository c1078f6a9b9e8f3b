"""FLAC: what STREAMINFO announces, and where another stream begins. Source: RFC 9639."""

from __future__ import annotations

from tokenizer.audio_input.byte_source import ByteSource, Window
from tokenizer.audio_input.contents import Contents, Part, Stream
from tokenizer.audio_input.tags import id3v2_size

_MARKERS = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")  # followed by STREAMINFO, the last block or not


def examine_flac(source: ByteSource, quick: bool) -> Contents:
    """The streams of a file; `quick` looks for no second one, which takes all its bytes."""
    window = Window(source)
    begins = [id3v2_size(window.at(0, 10))]
    at = None if quick else window.find(b"fLaC", begins[0] + 42)
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


def of_unknown_length(stream: Stream, head: bytes) -> tuple[Part, ...]:
    """The parts of a stream with its first 42 bytes `head` saying no length: a decoder then goes on to the end."""
    ((begin, size),) = stream.parts
    return head[:21] + bytes((head[21] & 0xF0, 0, 0, 0, 0)) + head[26:42], (begin + 42, size - 42)
