"""Tags of titles and artists, which stand before, between and behind MPEG audio, and before FLAC."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizer.audio_input.byte_source import Window

ID3V1_BYTES = 128


def id3v2_size(head: bytes) -> int:
    """Bytes of the ID3v2 tag that begins `head`; 0 where none does."""
    if head[:3] != b"ID3" or len(head) < 10 or max(head[6:10]) > 127:
        return 0
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return 10 + size + (10 if head[5] & 0x10 else 0)


def tag_size(window: Window, at: int) -> int:
    """Bytes of a tag at an offset: ID3v2, ID3v1, APE or Lyrics3; 0 where there is none."""
    head = window.at(at, 32)
    if head[:3] == b"ID3":
        return id3v2_size(head)
    if head[:3] == b"TAG" and window.size - at <= 2 * ID3V1_BYTES:
        return ID3V1_BYTES
    if head[:3] == b"TAG":  # in a joined file
        return ID3V1_BYTES if head[3:4] != b"+" else 227
    if head[:8] == b"APETAGEX" and len(head) == 32:
        size, _, flags = struct.unpack("<III", head[12:24])
        return size + 32 if flags & 1 << 29 else 32  # the size counts all but the header
    if head[:11] == b"LYRICSBEGIN":
        found = window.find(b"LYRICS200", at)
        return found + 9 - at if found is not None else 0
    return 0
