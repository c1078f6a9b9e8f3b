"""Whether a container that PyAV reads was cut off, by the sizes inside it. A container that says no time (MPEG-TS, FLV,
live WebM) still says how large its parts are. A cut exactly between two parts cannot be noticed.

Sources: ISO 14496-12 (MP4), RFC 8794 and 9559 (Matroska), ISO 13818-1 (MPEG-TS, MPEG-PS), the OpenDML AVI and ASF
specifications, Adobe's FLV specification.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from tokenizer.audio_input.byte_source import ByteSource, Window
from tokenizer.audio_input.contents import Damage

TS_PACKET = 188
TS_TAIL = TS_PACKET << 16  # bytes in which the last parts of an MPEG-TS lie
_EBML_UNKNOWN = -1
_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"mfra", b"sidx", b"uuid", b"meta", b"styp")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")


def cut_off(kind: str, source: ByteSource) -> tuple[Damage, ...]:
    """The damage of a file that ends within one of its parts."""
    read = _READERS.get(kind)
    found = read(Window(source, 1 << 16)) if read else None
    if found is None:
        return ()
    part, announced, there = found
    detail = f"its last part ({part}) is to hold {announced} bytes, but there are {there}"
    return (Damage("truncated", detail),)


_Found = tuple[str, int, int] | None  # the part that breaks off, bytes that it announces, bytes that there are


def _breaks_off(window: Window, part: str, begin: int, size: int) -> _Found:
    return (part, size, max(0, window.size - begin)) if begin + size > window.size else None


def _mp4(window: Window) -> _Found:
    at = 0
    while at + 8 <= window.size:
        size, name = struct.unpack(">I4s", window.at(at, 8))
        if size == 1:
            size = int.from_bytes(window.at(at + 8, 8), "big")
        if size == 0:  # up to the end
            return None
        if found := _breaks_off(window, name.decode("latin-1"), at, size):
            return found if name in _BOXES else None  # else it is something behind the file
        at += max(8, size)
    return None


def _avi(window: Window) -> _Found:
    at = 0
    while at + 8 <= window.size:
        name, size = struct.unpack("<4sI", window.at(at, 8))
        if name != b"RIFF" or size == 0:  # 0: never finalised
            return None
        if found := _breaks_off(window, "RIFF", at + 8, size):
            return found
        at += 8 + size + size % 2
    return None


def _asf(window: Window) -> _Found:
    at = 0
    while at + 24 <= window.size:
        size = int.from_bytes(window.at(at + 16, 8), "little")
        data = window.at(at, 16) == _ASF_DATA
        if data and _asf_properties(window.at(0, 1 << 16))[0]:
            packet = _asf_properties(window.at(0, 1 << 16))[1]
            rest = (window.size - at - 50) % packet if packet else 0
            return ("packet", packet, rest) if rest else None
        found = _breaks_off(window, "data" if data else "header", at, size)
        if found or data or size < 24:  # an index may follow
            return found
        at += size
    return None


def is_live_asf(source: ByteSource) -> bool:
    """Whether an ASF file says that it was written as it came, and so knows no length."""
    return _asf_properties(source.read_at(0, 1 << 16))[0]


def _asf_properties(head: bytes) -> tuple[bool, int]:
    """Whether an ASF file was written live, and bytes of a packet."""
    at = head.find(_ASF_FILE)
    if at < 0 or len(head) < at + 96:
        return False, 0
    flags, packet = struct.unpack("<II", head[at + 88 : at + 96])
    return bool(flags & 1), packet


def _flv(window: Window) -> _Found:
    """A file ends with the size of its last tag."""
    at = int.from_bytes(window.at(5, 4), "big") + 4
    while at < window.size:
        size = 11 + int.from_bytes(window.at(at + 1, 3), "big") + 4
        if window.at(at, 1)[0] & 0x1F not in (8, 9, 18):
            return None  # else it is something behind the file
        if found := _breaks_off(window, "tag", at, size):
            return found
        at += size
    return None


def _matroska(window: Window) -> _Found:
    at = 0
    while at < window.size:
        name, begin = _number(window, at, keep=True)
        if begin - at > 4:
            return None  # no element
        size, begin = _number(window, begin, keep=False)
        if begin > window.size:
            return ("element", begin - at, window.size - at)
        if name == _SEGMENT and size != _EBML_UNKNOWN:
            return _breaks_off(window, "segment", begin, size)
        if size == _EBML_UNKNOWN:
            if name not in (_SEGMENT, _CLUSTER):
                return None
            at = begin  # what is in it follows
            continue
        if found := _breaks_off(window, "cluster" if name == _CLUSTER else "element", begin, size):
            return found
        at = begin + size
    return None


def _number(window: Window, at: int, keep: bool) -> tuple[int, int]:
    """A number of EBML at an offset, with its length marker or without it, and what follows it."""
    data = window.at(at, 8)
    length = 9 - data[0].bit_length() if data and data[0] else 8
    value = int.from_bytes(data[:length].ljust(length, b"\0"), "big")
    if keep:
        return value, at + length
    bits = 7 * length
    return _EBML_UNKNOWN if value & (1 << bits) - 1 == (1 << bits) - 1 else value & (1 << bits) - 1, at + length


def _mpeg_ts(window: Window) -> _Found:
    if rest := window.size % TS_PACKET:
        return ("packet", TS_PACKET, rest)
    parts: dict[int, tuple[int, int]] = {}  # of a stream: bytes that its last part announces, bytes found
    for at in range(max(0, window.size - TS_TAIL) // TS_PACKET * TS_PACKET, window.size, TS_PACKET):
        packet = window.at(at, TS_PACKET)
        if packet[0] != 0x47:
            return None
        stream = (packet[1] & 0x1F) << 8 | packet[2]
        begin = 4 + (1 + packet[4] if packet[3] & 0x20 else 0)
        payload = packet[begin:] if packet[3] & 0x10 else b""
        if packet[1] & 0x40:
            parts.pop(stream, None)
            if payload[:3] == b"\0\0\1" and _is_sound(payload[3:4]):
                announced = int.from_bytes(payload[4:6], "big")
                parts[stream] = (announced + 6 if announced else 0, len(payload))
        elif stream in parts:
            parts[stream] = (parts[stream][0], parts[stream][1] + len(payload))
    return next((("part of sound", size, there) for size, there in parts.values() if there < size), None)


def _is_sound(identity: bytes) -> bool:
    """Whether a part of an MPEG stream is MPEG audio, AC-3 or the like."""
    return identity == b"\xbd" or identity == b"\xfd" or 0xC0 <= ord(identity or b"\0") <= 0xDF


def _mpeg_ps(window: Window) -> _Found:
    at = 0
    while at + 4 <= window.size:
        head = window.at(at, 14)
        if head[:3] != b"\0\0\1" or head[3] == 0xB9:
            return None
        if head[3] == 0xBA:
            size = 14 + (head[13] & 7) if len(head) == 14 and head[4] & 0xC0 == 0x40 else 12
        else:
            size = 6 + int.from_bytes(head[4:6], "big")
        if found := _breaks_off(window, "packet", at, size):
            return found
        at += size
    return ("packet", 4, window.size - at) if at < window.size else None


_READERS: dict[str, Callable[[Window], _Found]] = {
    "MP4": _mp4,
    "AVI": _avi,
    "ASF": _asf,
    "FLV": _flv,
    "Matroska": _matroska,
    "MPEG-TS": _mpeg_ts,
    "MPEG-PS": _mpeg_ps,
}
