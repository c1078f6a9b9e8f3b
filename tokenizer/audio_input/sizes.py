"""Formats of plain samples beside WAV: the bytes that a header announces against those that are there."""

from __future__ import annotations

import re
import struct

from tokenizer.audio_input.byte_source import ByteSource, Window
from tokenizer.audio_input.contents import Contents, Damage, Part, Stream
from tokenizer.audio_input.riff import says_unknown

_W64_DATA = b"data\xf3\xac\xd3\x11"


def examine_sizes(kind: str, source: ByteSource) -> Contents:
    """A file as one stream; truncated where its header announces more bytes of samples than there are."""
    window = Window(source, 1 << 16)
    if kind in _UNFINISHED and (parts := _UNFINISHED[kind](window)):
        return Contents(kind, (Stream(parts),))
    announced, there = _READERS[kind](window) if kind in _READERS else (0, 0)
    damage: tuple[Damage, ...] = ()
    if announced > there and not (announced < 1 << 32 and says_unknown(announced)) and announced < 1 << 62:
        damage = (Damage("truncated", f"its header announces {announced} bytes of samples, but there are {there}"),)
    return Contents(kind, (Stream(((0, source.size),)),), damage)


def _aiff(window: Window) -> tuple[int, int]:
    at = 12
    while at + 8 <= window.size:
        name, size = struct.unpack(">4sI", window.at(at, 8))
        if name == b"SSND":
            return max(0, size - 8), max(0, window.size - at - 16)
        at += 8 + size + size % 2
    return 0, 0


def _au(window: Window) -> tuple[int, int]:
    head = window.at(0, 12)
    if len(head) < 12:
        return 0, 0
    _, offset, size = struct.unpack((">" if head[:1] == b"." else "<") + "4sII", head)
    return size, max(0, window.size - offset)


def _rf64(window: Window) -> tuple[int, int]:
    at, long_size = 12, 0
    while at + 8 <= window.size:
        name, size = struct.unpack("<4sI", window.at(at, 8))
        if name == b"ds64" and len(sizes := window.at(at + 8, 16)) == 16:
            long_size = struct.unpack("<8xQ", sizes)[0]
        if name == b"data":
            return long_size if size == 0xFFFFFFFF else size, window.size - at - 8
        at += 8 + size + size % 2
    return 0, 0


def _w64(window: Window) -> tuple[int, int]:
    at = 40
    while at + 24 <= window.size:
        head = window.at(at, 24)
        size = struct.unpack("<Q", head[16:])[0]
        if head.startswith(_W64_DATA):
            return max(0, size - 24), window.size - at - 24
        at += max(24, size + -size % 8)
    return 0, 0


def _caf(window: Window) -> tuple[int, int]:
    at = 8
    while at + 12 <= window.size:
        name, size = struct.unpack(">4sq", window.at(at, 12))
        if name == b"data":
            return max(0, size), window.size - at - 12
        at += 12 + max(0, size)
    return 0, 0


def _sph(window: Window) -> tuple[int, int]:
    head = window.at(0, 1024)
    fields = rb"^(sample_count|channel_count|sample_n_bytes) -i (\d+)"
    found = {name: int(value) for name, value in re.findall(fields, head, re.M)}
    first_line = head[8:16].strip()
    if len(found) < 3 or not first_line.isdigit() or b"shorten" in head:
        return 0, 0
    announced = found[b"sample_count"] * found[b"channel_count"] * found[b"sample_n_bytes"]
    return announced, max(0, window.size - int(first_line))


def _svx(window: Window) -> tuple[int, int]:
    at = 12
    while at + 8 <= window.size:
        name, size = struct.unpack(">4sI", window.at(at, 8))
        if name == b"BODY":
            return size, window.size - at - 8
        at += 8 + size + size % 2
    return 0, 0


def _voc(window: Window) -> tuple[int, int]:
    head = window.at(0, 22)
    at = struct.unpack("<H", head[20:])[0] if len(head) == 22 else window.size
    while at + 4 <= window.size:
        kind, size = window.at(at, 1)[0], int.from_bytes(window.at(at + 1, 3), "little")
        if kind == 0:
            break
        if kind in (1, 2, 9) and at + 4 + size > window.size:
            return size, window.size - at - 4
        at += 4 + size
    return 0, 0


def _avr(window: Window) -> tuple[int, int]:
    head = window.at(0, 128)
    if len(head) < 128:
        return 0, 0
    stereo, bits, frames = struct.unpack(">12xhh10xI", head[:30])
    return frames * (2 if stereo else 1) * (bits // 8), window.size - 128


def _paf(window: Window) -> tuple[int, int]:
    """It says no length; but a sample is either there or not."""
    big = window.at(0, 4) == b" paf"
    code, channels = struct.unpack((">" if big else "<") + "16x2I", window.at(0, 24).ljust(24, b"\0"))
    return _to_whole_blocks(window.size - 2048, {0: 2, 1: 32, 2: 1}.get(code, 1) * min(channels, 1 << 16))


def _ircam(window: Window) -> tuple[int, int]:
    little = window.at(0, 4) in (b"\x64\xa3\x01\0", b"\x64\xa3\x02\0", b"\x64\xa3\x03\0")
    channels, code = struct.unpack(("<" if little else ">") + "8x2I", window.at(0, 16).ljust(16, b"\0"))
    return _to_whole_blocks(window.size - 1024, {2: 2, 4: 4, 0x40004: 4}.get(code, 1) * min(channels, 1 << 16))


def _to_whole_blocks(there: int, block: int) -> tuple[int, int]:
    return (there + -there % block, there) if there > 0 and block else (0, 0)


def _wve(window: Window) -> tuple[int, int]:
    head = window.at(0, 32)
    return (int.from_bytes(head[18:22], "big"), window.size - 32) if len(head) == 32 else (0, 0)


def _mat(window: Window) -> tuple[int, int]:
    """MATLAB 5: matrices, each with its size, which libsndfile itself writes 8 too large."""
    at, order = 128, "<" if window.at(126, 2) == b"IM" else ">"
    while at + 8 <= window.size:
        size = struct.unpack(order + "4xI", window.at(at, 8))[0]
        if at + size > window.size:
            return size, window.size - at - 8
        at += 8 + size
    return 0, 0


_READERS = {
    "SVX": _svx,
    "VOC": _voc,
    "AIFF": _aiff,
    "AU": _au,
    "RF64": _rf64,
    "W64": _w64,
    "CAF": _caf,
    "SPH": _sph,
    "AVR": _avr,
    "PAF": _paf,
    "IRCAM": _ircam,
    "WVE": _wve,
    "MAT": _mat,
}


def _unfinished_caf(window: Window) -> tuple[Part, ...]:
    """A file whose last chunk, its samples, says size -1: with the size that it has."""
    at = 8
    while at + 12 <= window.size:
        name, size = struct.unpack(">4sq", window.at(at, 12))
        if name == b"data" and size == -1:
            begin = at + 12
            return window.at(0, at + 4) + struct.pack(">q", window.size - begin), (begin, window.size - begin)
        at += 12 + max(0, size)
    return ()


def _unfinished_rf64(window: Window) -> tuple[Part, ...]:
    """A file whose table of long sizes was never filled in: with the sizes that it has."""
    at, table = 12, None
    while at + 8 <= window.size:
        name, size = struct.unpack("<4sI", window.at(at, 8))
        if name == b"ds64" and not any(window.at(at + 16, 8)):
            table = at + 8
        if name == b"data":
            if table is None or size not in (0, 0xFFFFFFFF) or window.size == at + 8:
                return ()
            begin = at + 8
            sizes = struct.pack("<QQ", window.size - 8, window.size - begin)
            head = window.at(0, table) + sizes + window.at(table + 16, at + 4 - table - 16)
            return head + b"\xff" * 4, (begin, window.size - begin)
        at += 8 + size + size % 2
    return ()


_UNFINISHED = {"CAF": _unfinished_caf, "RF64": _unfinished_rf64}
