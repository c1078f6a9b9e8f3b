"""Streams decoded by libsndfile, from any frame to their true end.

libsndfile stops where a header says, and skips what it cannot decode. So its count is not trusted but compared with the
frames that come out. FLAC is decoded with a header that is made to state no length, and its checksum is compared too.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile

from tokenizer.audio_input.byte_source import ByteSource, VirtualFile
from tokenizer.audio_input.contents import BadAudio, Stream
from tokenizer.audio_input.flac import of_unknown_length
from tokenizer.audio_input.ogg_part import FarOgg

VORBIS_END = 5  # seconds at the end that hold the last page of Vorbis, in which libsndfile seeks to wrong samples
STEP = 4096  # frames at a time, to find the last that can be decoded
_NO_LENGTH = 1 << 60  # a stream of unknown length has more frames than this, according to libsndfile


class _Forward(soundfile.SoundFile):
    """Reads from the first frame to the last without seeking, as seeks end at the length that libsndfile knows."""

    def seekable(self) -> bool:
        return False


class SndfileStream:
    """One stream, opened.

    Attributes:
        sample_rate: Hz.
        channels: how many.
        frames: that its header announces; None where it announces none.

    Raises:
        BadAudio: libsndfile cannot read it.
    """

    def __init__(self, source: ByteSource, stream: Stream, kind: str) -> None:
        self._source, self._stream, self._kind = source, stream, kind
        with _open(source, stream.parts, soundfile.SoundFile) as (file, _):
            self.sample_rate, self.channels = file.samplerate, file.channels
            announced = file.frames
        self._delay = stream.delay
        self.frames = max(0, announced - self._delay) if announced < _NO_LENGTH else None
        if kind == "MPEG" and stream.frames is not None and abs(announced - stream.frames) > stream.tolerance:
            raise BadAudio("unreadable", f"libsndfile takes its {stream.frames} samples for {announced}")

    def read(self, start: int, frames: int | None, block: int) -> Iterator[np.ndarray]:
        """float32 blocks [n, C] of up to `frames` frames (None: all) from frame `start` on.

        Raises:
            BadAudio: what is decoded differs from what is announced.
        """
        to_end = frames is None or self.frames is None or start + frames >= self.frames
        if self._kind == "FLAC" and start == 0 and to_end:
            yield from self._read_flac(frames, block)
            return
        left, done, first = frames, 0, start + self._delay
        source, parts, ends = self._source, self._stream.parts, None
        if isinstance(source, FarOgg) and frames is not None and self.frames is not None:
            pages, ends = source.part(start, frames, self.sample_rate)
            parts = (pages,)
        forward = self.frames is None
        with _open(source, parts, _Forward if forward else soundfile.SoundFile) as (file, virtual):
            _skip(file, first if ends is None else first - (ends - file.frames), block)
            while left is None or left > 0:
                data = self._block(file, virtual, block if left is None else min(block, left), start + done, "float32")
                if not len(data):
                    break
                done += len(data)
                left = None if left is None else left - len(data)
                yield data
        if left is None or left > 0:
            self._compare(start + done)

    def _read_flac(self, frames: int | None, block: int) -> Iterator[np.ndarray]:
        head = self._source.read_at(self._stream.parts[0][0], 42)
        digest, bits = hashlib.md5(), self._stream.bits
        done = 0
        with _open(self._source, of_unknown_length(self._stream, head), _Forward) as (file, virtual):
            while self.frames is None or done < self.frames:
                size = block if self.frames is None else min(block, self.frames - done)
                data = self._block(file, virtual, size, done, "int32")
                if not len(data):
                    break
                if self._stream.md5:
                    digest.update(_as_stored(data, bits))
                wave = data.astype(np.float32)
                wave *= 2.0**-31
                yield wave if frames is None else wave[: max(0, frames - done)]
                done += len(data)
            self._compare(done)
            if self.frames is not None:
                more = 0
                with contextlib.suppress(soundfile.LibsndfileError):  # a tag behind the audio
                    while len(data := file.read(block, "int32", always_2d=True)):
                        more += len(data)
                if more:
                    raise BadAudio("damaged", self._figures(done + more))
        if self._stream.md5 and digest.digest() != self._stream.md5:
            raise BadAudio("damaged", "its samples are not those that the checksum in its header is of")

    def _block(self, file: Any, virtual: VirtualFile, size: int, done: int, dtype: str) -> np.ndarray:
        try:
            data = file.read(size, dtype=dtype, always_2d=True)
        except soundfile.LibsndfileError as error:
            virtual.check()
            at_end = virtual.tell() >= sum(p[1] if isinstance(p, tuple) else len(p) for p in self._stream.parts)
            reason = "truncated" if at_end else "damaged"
            raise BadAudio(reason, f"{self._figures(self._decodable())} ({_reason(error)})") from None
        virtual.check()
        return data

    def _compare(self, decoded: int) -> None:
        if self.frames is not None and self.frames - decoded > self._stream.tolerance:
            raise BadAudio("truncated", self._figures(decoded))

    def _decodable(self) -> int:
        """Frames from the first up to where decoding fails."""
        parts, done = self._stream.parts, 0
        if self._kind == "FLAC":
            parts = of_unknown_length(self._stream, self._source.read_at(parts[0][0], 42))
        with _open(self._source, parts, _Forward) as (file, _), contextlib.suppress(soundfile.LibsndfileError):
            while len(data := file.read(STEP, dtype="float32", always_2d=True)):
                done += len(data)
        return max(0, done - self._delay)

    def _figures(self, decoded: int) -> str:
        found = f"{decoded / self.sample_rate:.3f} s can be decoded"
        if self.frames is None:
            return f"{found} and no more"
        return f"its header announces {self.frames / self.sample_rate:.3f} s, but {found}"


class _open:
    """An open file of libsndfile and the virtual file that it reads."""

    def __init__(self, source: ByteSource, parts: Any, kind: type) -> None:
        self._virtual = VirtualFile(source, parts)
        try:
            self._file = kind(self._virtual)
        except (soundfile.LibsndfileError, TypeError) as error:  # the latter: a headerless file, which says no rate
            self._virtual.check()
            raise BadAudio("unreadable", _reason(error)) from None

    def __enter__(self) -> tuple[Any, VirtualFile]:
        return self._file, self._virtual

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _skip(file: Any, frames: int, block: int) -> None:
    """Go to a frame; GSM, for one, has to be decoded up to there."""
    if frames and file.seekable():
        near_end = file.subtype == "VORBIS" and frames > file.frames - VORBIS_END * file.samplerate
        first = max(0, frames - VORBIS_END * file.samplerate) if near_end else frames
        file.seek(min(first, file.frames))
        frames = frames - first
    while frames > 0 and len(skipped := file.read(min(frames, block), dtype="float32")):
        frames -= len(skipped)


def _as_stored(data: np.ndarray, bits: int) -> bytes:
    """int32 samples that fill their 32 bits as the whole bytes that FLAC takes its checksum of."""
    values = data >> (32 - bits)
    if bits <= 8:
        return values.astype(np.int8).tobytes()
    if bits <= 16:
        return values.astype("<i2").tobytes()
    if bits <= 24:
        return np.ascontiguousarray(values.astype("<i4")).view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    return values.astype("<i4").tobytes()


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", None) or error).removeprefix("Error : ").rstrip(".")
