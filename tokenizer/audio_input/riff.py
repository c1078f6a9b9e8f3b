"""WAV: where its samples are, whatever its sizes say.

A size of 32 bits wraps above 4 GB, and a recording that was never finalised states 0 or the largest size there is.
Samples beyond the stated size are given to the decoder as several files of ordinary size, one after another.
"""

from __future__ import annotations

import re
import struct

from tokenizer.audio_input.byte_source import ByteSource, Window
from tokenizer.audio_input.contents import Contents, Damage, Stream

PIECE_BYTES = 1 << 30
TAIL_BYTES = 1 << 16  # searched at the end for chunks that follow samples of unknown size
_CLOSING = re.compile(rb"LIST|id3 |ID3 |bext|iXML|cue |fact|PEAK|smpl|afsp|_PMX")  # chunks that stand behind samples
JUNK_BYTES = 1024  # after the samples that are ignored, such as tags of other formats
_PLAIN = (1, 3, 6, 7, 0xFFFE)  # PCM, float, A-law, mu-law, extensible: any whole block begins a stream


def says_unknown(size: int) -> bool:
    """Whether a size in bytes is about 2^31 or 2^32, which programs state when they write into a pipe."""
    return 0x7FFF0000 <= size < 0x80010000 or size >= 0xFFFF0000


def examine_wav(source: ByteSource) -> Contents | None:
    """The streams of a WAV file; None if its chunks name no samples."""
    window, streams, damage = Window(source, 1 << 16), [], []
    begin: int | None = 0
    seconds = 0.0
    while begin is not None:
        found = _examine(window, begin, seconds)
        if found is None:
            break
        stream, wrong, seconds, begin = found
        streams.extend(stream)
        damage.extend(wrong)
    return Contents("WAV", tuple(streams), tuple(damage)) if streams else None


def _examine(window: Window, begin: int, seconds: float) -> tuple[list[Stream], list[Damage], float, int | None] | None:
    """The file that begins at `begin`, what is wrong with it, seconds up to its end, and where another begins."""
    order = ">" if window.at(begin, 4) == b"RIFX" else "<"
    format_, data, at = b"", None, begin + 12
    while data is None and at + 8 <= window.size:
        name, size = struct.unpack(f"{order}4sI", window.at(at, 8))
        if name == b"fmt ":
            format_ = window.at(at + 8, min(size, 64))
        if name == b"data":
            data = (at + 8, size)
        at += 8 + size + size % 2
    if data is None or len(format_) < 16:
        return None
    tag, _, rate, bytes_a_second, block = struct.unpack(f"{order}HHIIH", format_[:14])
    per_second = rate * block if tag in _PLAIN else bytes_a_second
    offset, announced = data
    there = window.size - offset
    size, wrong, following = _size(window, order, offset, announced)
    if wrong and per_second:
        detail = f"its header announces {announced} bytes of samples, but there are {there}"
        wrong = [Damage(wrong[0].reason, detail, seconds + min(announced, there) / per_second)]
    seconds += size / per_second if per_second else 0.0
    end = window.size if following is None else following
    if size == announced or wrong:
        streams = [Stream(((begin, end - begin),))]
    else:
        streams = _pieces(window.at(begin, offset - begin), order, offset, size, block if tag in _PLAIN else 0)
    return streams, wrong, seconds, following


def _size(window: Window, order: str, offset: int, announced: int) -> tuple[int, list[Damage], int | None]:
    """Bytes of samples, what is wrong with what is announced, and where another file begins."""
    there = window.size - offset
    if announced > there:
        if says_unknown(announced):
            return _chunks_at_end(window, order, offset) - offset, [], None
        return there, [Damage("truncated", "")], None
    behind = offset + announced + announced % 2
    if _is_chain(window, order, behind):
        return announced, [], None
    if window.at(behind, 4) in (b"RIFF", b"RIFX") and window.at(behind + 8, 4) == b"WAVE":
        return announced, [], behind
    if announced == 0 or says_unknown(announced):
        return _chunks_at_end(window, order, offset) - offset, [], None
    if wraps := (there - announced) >> 32:
        return announced + (wraps << 32), [], None
    if window.size - behind < JUNK_BYTES or not window.at(behind, 1 << 16).strip(b"\0"):
        return announced, [], None
    return announced, [Damage("damaged", "")], None


def _chunks_at_end(window: Window, order: str, offset: int) -> int:
    """Where samples from `offset` on, of unknown size, end: before the chunks of text that close the file, if any."""
    begin = max(offset, window.size - TAIL_BYTES)
    tail = window.at(begin, TAIL_BYTES)
    found = (begin + match.start() for match in _CLOSING.finditer(tail))
    return next((at for at in found if _is_chain(window, order, at)), window.size)


def _is_chain(window: Window, order: str, at: int) -> bool:
    """Whether chunks, and nothing else, follow up to the end."""
    while at + 8 <= window.size:
        name, size = struct.unpack(f"{order}4sI", window.at(at, 8))
        if not all(32 <= byte < 127 for byte in name) or name[:3] == b"RIF":
            return False
        at += 8 + size + size % 2
    return at <= window.size + 1 or at - window.size < 8


def _pieces(head: bytes, order: str, offset: int, size: int, block: int) -> list[Stream]:
    """Samples as files of at most `PIECE_BYTES`, each with the header `head`; as one where a block is no beginning."""
    most = PIECE_BYTES // block * block if block else min(size, 0x7FFF0000)
    pieces = []
    for begin in range(0, size, most) if size else (0,):
        length = min(most, size - begin)
        header = head[:4] + struct.pack(f"{order}I", len(head) - 8 + length) + head[8:-4]
        pieces.append(Stream((header + struct.pack(f"{order}I", length), (offset + begin, length))))
    return pieces
