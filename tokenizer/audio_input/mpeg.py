"""MPEG audio (MP3, MP2): the frames that are there, and what their header frame announces.

Only an optional first frame (Xing, Info) says how many frames a file has. So the frames are counted: each header says
how long its frame is. Sources: ISO 11172-3, ISO 13818-3; the Xing and LAME tags as in mpg123's and LAME's
documentation.

The first decoded samples are the delay of the codec. LAME writes its delay, and how many samples it added at the end,
into the header frame, and the decoder (mpg123) drops both. Without a header frame, the smallest delay that any encoder
has is dropped; how many samples were added at the end cannot be known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizer.audio_input.byte_source import ByteSource, Window
from tokenizer.audio_input.contents import Contents, Damage, Stream
from tokenizer.audio_input.tags import ID3V1_BYTES, tag_size

_KBPS = {
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
HEAD_BYTES = 192  # of a frame that are looked at: up to the delay in a LAME tag
LAYER_2_DELAY = 481  # samples, of the filter bank when encoding and decoding (also of layer 1)
DECODER_DELAY = 529  # of layer 3; mpg123 drops these samples by itself
LAYER_3_DELAY = 576
"""Samples of delay that LAME's own decoder assumes of an encoder that states none; 1105 together with the decoder's.
It cannot be less than 1057 (481 of the filter bank, 576 by which blocks overlap): of earlier samples only half can be
decoded, also in a file that was cut out of a longer one."""
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


@dataclass(frozen=True)
class Frame:
    """A frame's header: bytes of the frame, samples it decodes to, and what may not change within a stream."""

    length: int
    samples: int
    rate: int
    version: int
    layer: int
    mono: bool
    crc: bool

    @property
    def side(self) -> int:
        """Bytes from its start to behind the side information, where a header frame has its text."""
        return (
            4
            + {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}[
                (self.version == 3, self.mono)
            ]
        )

    def same_stream(self, other: Frame) -> bool:
        return (self.rate, self.version, self.layer, self.mono) == (
            other.rate,
            other.version,
            other.layer,
            other.mono,
        )


_frames: dict[int, Frame | None] = {}  # by the bits of the header that matter; a few hundred at most


def parse_header(header: bytes) -> Frame | None:
    """The frame that 4 bytes announce; None where they are no header (free-format ones included)."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    bits = header[1] << 16 | header[2] << 8 | header[3] & 0xC0
    if bits not in _frames:
        _frames[bits] = _parse(bits)
    return _frames[bits]


def _parse(bits: int) -> Frame | None:
    version, layer = bits >> 19 & 3, 4 - (bits >> 17 & 3)
    kbps, rate = bits >> 12 & 15, bits >> 10 & 3
    if version == 1 or layer == 4 or kbps in (0, 15) or rate == 3:
        return None
    hz = _RATES[version][rate]
    bitrate, pad = 1000 * _KBPS[(1 if version == 3 else 2, layer)][kbps], bits >> 9 & 1
    if layer == 1:
        length, samples = (12 * bitrate // hz + pad) * 4, 384
    else:
        samples = 576 if layer == 3 and version != 3 else 1152
        length = samples // 8 * bitrate // hz + pad
    return Frame(length, samples, hz, version, layer, bits >> 6 & 3 == 3, not bits >> 16 & 1)


def first_frame(data: bytes, within: int | None = None) -> int | None:
    """Offset of the first header in `data` (before `within`) that a second and a third of the same stream follow, or
    the end of the data."""
    at = -1
    while (at := data.find(b"\xff", at + 1)) >= 0 and (within is None or at < within):
        frame = parse_header(data[at : at + 4])
        next_at, found, followed = at, frame, 0
        while frame and found and followed < 3 and found.same_stream(frame):
            next_at, followed = next_at + found.length, followed + 1
            found = parse_header(data[next_at : next_at + 4])
        if followed == 3 or (followed > 0 and next_at >= len(data)):
            return at
    return None


def examine_mpeg(source: ByteSource, quick: bool = False) -> Contents | None:
    """The streams of a file: joined files are several. None where no frame is found. `quick` takes it for one sound
    stream where its header frame announces as many bytes as there are."""
    if quick and (stream := _as_announced(source)):
        return Contents("MPEG", (stream,))
    groups = _groups(source)
    # one frame more than announced is an encoder that did not count its last
    groups = [g for i, g in enumerate(groups) if g.frames > 1 or g.announced is not None or i == 0]
    if not groups:
        return None
    damage, seconds = [], 0.0
    for group in groups:
        frame = group.first
        per_second = frame.rate / frame.samples
        for at, size, before in group.gaps:
            second = seconds + before / per_second
            detail = f"{size} bytes at {at}, after {second:.3f} s, are no MPEG audio{_figures(group)}"
            damage.append(Damage("damaged", detail, second))
        seconds += group.frames / per_second
        if group.announced is not None and abs(group.announced - group.frames) > 1:
            missing = group.announced > group.frames
            # where there is more than announced, what the header calls the end is already in doubt
            wrong = ("truncated", seconds) if missing else ("damaged", None)
            damage.append(Damage(wrong[0], _figures(group).removeprefix("; "), wrong[1]))
        if group.broken_off and (group.announced is None or group.frames < group.announced):
            detail = f"its last frame breaks off; {group.frames / per_second:.3f} s of whole frames are there"
            damage.append(Damage("truncated", detail))
    if len(groups) == 1 and groups[0].announced is not None and _size_is_right(groups[0].header, source.size):
        whole = Stream(((0, source.size),), tolerance=groups[0].first.samples, delay=_delay(3, groups[0].header))
        streams: tuple[Stream, ...] = (whole,)
    else:
        streams = tuple(map(_stream, groups))
    return Contents("MPEG", streams, tuple(damage))


@dataclass
class _Group:
    """The frames of one stream.

    Attributes:
        frames: how many, without the header frame.
        announced: how many the header frame says; None without one.
        header: the first bytes of the header frame; empty without one.
        gaps: (offset, size, frames before) of bytes among them that are no frame.
        broken_off: the file ends within the frame behind the last.
    """

    begin: int
    end: int
    first: Frame
    frames: int
    announced: int | None
    gaps: list[tuple[int, int, int]]
    header: bytes = b""
    broken_off: bool = False


def _figures(group: _Group) -> str:
    if group.announced is None:
        return ""
    announced, found = (n * group.first.samples / group.first.rate for n in (group.announced, group.frames))
    return f"; its header announces {announced:.3f} s, but its frames last {found:.3f} s"


def _stream(group: _Group) -> Stream:
    begin, size, tolerance = group.begin, group.end - group.begin, group.first.samples
    tag, delay = group.first.side, _delay(group.first.layer, group.header)
    if group.announced is not None and group.header[36:40] != b"VBRI":
        if _size_is_right(group.header, size):
            return Stream(((begin, size),), tolerance=tolerance, delay=delay)
        head = group.header[: tag + 12] + struct.pack(">I", size)
        return Stream((head, (begin + len(head), size - len(head))), tolerance=tolerance, delay=delay)
    samples = group.frames * tolerance
    if group.first.layer != 3:  # which has no header frames
        return Stream(((begin, size),), samples, tolerance, delay)
    if group.header:  # of a kind that the decoder does not go by
        begin, size = begin + group.first.length, size - group.first.length
    return Stream((_header_frame(group.first, group.frames), (begin, size)), samples, tolerance, delay)


def _delay(layer: int, header: bytes) -> int:
    """Samples that come before the first, beside those that the decoder drops by itself. `header` begins the header
    frame, or is empty."""
    if layer != 3:
        return LAYER_2_DELAY
    frame = parse_header(header)
    if frame is None or header[36:40] == b"VBRI":
        return LAYER_3_DELAY
    tag = frame.side
    flags = int.from_bytes(header[tag + 4 : tag + 8], "big")
    lame = tag + 8 + sum(size for bit, size in enumerate((4, 4, 100, 4)) if flags >> bit & 1)
    named, delay = header[lame : lame + 1], int.from_bytes(header[lame + 21 : lame + 23], "big") >> 4
    return 0 if named.strip(b"\0") and delay else LAYER_3_DELAY


def _size_is_right(header: bytes, size: int) -> bool:
    """Whether a header frame of text "Xing" or "Info" says about the size that there is, or none: another makes the
    decoder print a warning."""
    frame = parse_header(header)
    if frame is None or header[36:40] == b"VBRI":
        return False
    flags, _, announced = struct.unpack(">III", header[frame.side + 4 : frame.side + 16])
    return not flags & 2 or abs(announced - size) <= announced // 100


def _as_announced(source: ByteSource) -> Stream | None:
    """The one stream of a file whose header frame announces its size; None of others."""
    window = Window(source, 1 << 16)
    at = tag_size(window, 0)
    head = window.at(at, HEAD_BYTES)
    frame = parse_header(head)
    if frame is None or not _announced(frame, head) or head[36:40] == b"VBRI":
        return None
    flags, _, announced = struct.unpack(">III", head[frame.side + 4 : frame.side + 16])
    if not flags & 2 or not 0 <= source.size - at - announced <= 2 * ID3V1_BYTES:
        return None
    return Stream(((0, source.size),), tolerance=frame.samples, delay=_delay(3, head))


def _groups(source: ByteSource) -> list[_Group]:
    groups: list[_Group] = []
    for offset, frame, head, junk in _walk(source):
        announced = _announced(frame, head)
        is_header = announced is not None
        group = groups[-1] if groups else None
        if group is None or is_header or not frame.same_stream(group.first) or _starts_anew(group, frame, head):
            group = _Group(offset, offset, frame, 0, announced or None, [], head if is_header else b"")
            groups.append(group)
        elif junk:
            group.gaps.append((offset - junk, junk, group.frames))
        group.frames += not is_header
        group.end = offset + frame.length
    if groups:
        rest = source.read_at(groups[-1].end, 4)
        cut = parse_header(rest)
        groups[-1].broken_off = (
            cut is not None
            and cut.same_stream(groups[-1].first)
            and bool(groups[-1].frames > 1)
            and groups[-1].end + cut.length > source.size
        )
    return groups


def _starts_anew(group: _Group, frame: Frame, head: bytes) -> bool:
    """Whether a frame beyond the announced ones begins another file: one that needs no bits of the frames before."""
    if group.announced is None or group.frames != group.announced or frame.layer != 3:
        return False
    side = 6 if frame.crc else 4
    main_data_begin = head[side] << 1 | head[side + 1] >> 7 if frame.version == 3 else head[side]
    return main_data_begin == 0


def _announced(frame: Frame, head: bytes) -> int | None:
    """Frames that a header frame announces (0: it does not say); None where it is no header frame."""
    if frame.layer != 3:
        return None
    side = frame.side
    if head[side : side + 4] in (b"Xing", b"Info"):
        flags, frames = struct.unpack(">II", head[side + 4 : side + 12].ljust(8, b"\0"))
        return frames if flags & 1 else 0
    if head[36:40] == b"VBRI":
        return struct.unpack(">I", head[50:54].ljust(4, b"\0"))[0]
    return None


def _header_frame(like: Frame, frames: int) -> bytes:
    """A header frame that says how many frames follow."""
    version = {3: 1}.get(like.version, 2)
    rates = _RATES[like.version]
    kbps = next(i for i, rate in enumerate(_KBPS[(version, 3)]) if rate * 1000 >= 64000)
    header = bytes(
        (0xFF, 0xE0 | like.version << 3 | 1 << 1 | 1, kbps << 4 | rates.index(like.rate) << 2, 0xC0 if like.mono else 0)
    )
    frame = parse_header(header)
    assert frame is not None
    return (header.ljust(frame.side, b"\0") + b"Info" + struct.pack(">II", 1, frames)).ljust(frame.length, b"\0")


def _walk(source: ByteSource) -> Iterator[tuple[int, Frame, bytes, int]]:
    """(offset, frame, its first `HEAD_BYTES`, bytes before it that are neither frame nor tag) of each whole frame."""
    window, at, junk = Window(source), 0, 0
    current: Frame | None = None
    while at < source.size:
        head = window.at(at, HEAD_BYTES)
        frame = parse_header(head)
        if frame is not None and at + frame.length > source.size:
            return  # the last frame is not whole
        if frame is not None and (
            (current is not None and not junk and frame.same_stream(current)) or _followed(window, at, frame)
        ):
            yield at, frame, head, junk
            at, junk, current = at + frame.length, 0, frame
        elif size := tag_size(window, at):
            at += size
        else:
            found = window.find(b"\xff", at + 1)
            if found is None:
                return
            junk, at = junk + found - at, found


def _followed(window: Window, at: int, frame: Frame) -> bool:
    """Whether a frame, a tag or the end follows a frame: a header's 11 bits are found in any data."""
    end = at + frame.length
    if end >= window.size or tag_size(window, end):
        return True
    following = parse_header(window.at(end, 4))
    return following is not None and following.same_stream(frame)
