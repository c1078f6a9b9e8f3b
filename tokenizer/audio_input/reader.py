"""The one reader of audio files: any container, decoded to its end in one pass, whatever its header announces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tokenizer.audio_input.byte_source import ByteSource
from tokenizer.audio_input.container_ends import cut_off
from tokenizer.audio_input.contents import BadAudio, Contents, NoAudio, Stream
from tokenizer.audio_input.flac import examine_flac
from tokenizer.audio_input.kinds import HEAD_BYTES, LIBSNDFILE_KINDS, MEDIA_FORMATS, kind_of
from tokenizer.audio_input.libsndfile import SndfileStream
from tokenizer.audio_input.media import MediaStream
from tokenizer.audio_input.mpeg import examine_mpeg
from tokenizer.audio_input.ogg import examine_ogg
from tokenizer.audio_input.riff import examine_wav
from tokenizer.audio_input.sizes import examine_sizes

BLOCK_SECONDS = 10.0


def examine(source: ByteSource, quick: bool = False) -> Contents:
    """What an audio file holds, without decoding it. Its bytes are read once (of WAV and the like the headers only);
    `quick` reads the ends of a file only, where these agree that it is one sound stream.

    Raises:
        BadAudio: it is empty, or no audio that is known.
    """
    if source.size == 0:
        raise BadAudio("zero length", "the file is empty")
    head = source.read_at(0, HEAD_BYTES)
    kind = kind_of(head)
    if kind is None:
        raise NoAudio(f"it holds no audio of a known kind; it begins with {_shown(head)}")
    whole = Contents(kind, (Stream(((0, source.size),)),))
    if kind == "FLAC":
        return examine_flac(source, quick)
    if kind == "Ogg":
        return examine_ogg(source, quick)
    if kind == "MPEG":
        return examine_mpeg(source, quick) or whole
    if kind == "WAV":
        return examine_wav(source) or whole
    if kind not in LIBSNDFILE_KINDS:
        return whole if quick else replace(whole, damage=cut_off(kind, source))
    return examine_sizes(kind, source)


def _shown(head: bytes) -> str:
    return repr(head[:24].decode("ascii", "replace").replace("\ufffd", "?"))


class AudioReader:
    """An audio file to be decoded.

    Args:
        source: its bytes; closed by the caller.
        contents: of `examine`, where that was done before.

    Attributes:
        kind: "WAV", "MP4", ...
        sample_rate: Hz.
        channels: how many.

    Raises:
        BadAudio: it is empty, or no decoder reads it.
    """

    def __init__(self, source: ByteSource, contents: Contents | None = None) -> None:
        self._contents = contents or examine(source)
        self.kind = self._contents.kind
        self._streams = _opened(source, self._contents)
        first = self._streams[0]
        self.sample_rate, self.channels = first.sample_rate, first.channels
        for other in self._streams[1:]:
            if (other.sample_rate, other.channels) != (self.sample_rate, self.channels):
                raise BadAudio(
                    "unreadable",
                    f"it holds several streams, of {self.sample_rate} Hz with {self.channels} channels and of "
                    f"{other.sample_rate} Hz with {other.channels}; split it first",
                )

    @property
    def announced(self) -> int | None:
        """Frames that the headers announce, of all streams; None where one does not say."""
        total = 0
        for stream in self._streams:
            if stream.frames is None:
                return None
            total += stream.frames
        return total

    def frames(self) -> int:
        """Frames that there are: as announced, or counted by decoding where the headers say nothing exact."""
        return sum(_frames(stream) for stream in self._streams)

    def refuse_damage(self, end: float) -> None:
        """Raise BadAudio where the bytes of the file show damage that begins before second `end`."""
        for damage in self._contents.damage:
            if end >= (self._seconds_decoded() if damage.at is None and end < np.inf else damage.at or 0.0):
                raise BadAudio(damage.reason, damage.detail)

    def _seconds_decoded(self) -> float:
        """Up to the end; infinity where decoding fails on the way, and so says where by itself."""
        try:
            return self.frames() / self.sample_rate
        except BadAudio:
            return np.inf

    def read(self, start: int = 0, frames: int | None = None, block: int | None = None) -> Iterator[np.ndarray]:
        """float32 blocks [n, C], in [-1, 1], of up to `frames` frames (None: all that there are) from `start` on.

        Raises:
            BadAudio: within these frames or at their end, what is decoded is not what is announced, with both figures.
        """
        block = block or max(1, int(BLOCK_SECONDS * self.sample_rate))
        self.refuse_damage(np.inf if frames is None else (start + frames) / self.sample_rate)
        last = self._streams[-1]
        for stream in self._streams:
            if stream is not last:
                length = _frames(stream)
                if start >= length:
                    start -= length
                    continue
            for data in stream.read(start, frames, block):
                frames = None if frames is None else frames - len(data)
                if len(data):
                    yield data
            if frames == 0:
                return
            start = 0


def _opened(source: ByteSource, contents: Contents) -> list[SndfileStream | MediaStream]:
    kind = contents.kind
    try:
        if kind not in LIBSNDFILE_KINDS:
            return [MediaStream(source, kind)]
        return [SndfileStream(source, stream, kind) for stream in contents.streams]
    except BadAudio as error:
        for damage in contents.damage:
            raise BadAudio(damage.reason, damage.detail) from None
        if kind not in MEDIA_FORMATS or kind not in LIBSNDFILE_KINDS:
            raise
        try:  # some codecs in these containers only FFmpeg has
            return [MediaStream(source, kind)]
        except BadAudio:
            raise error from None


def _frames(stream: SndfileStream | MediaStream) -> int:
    if isinstance(stream, MediaStream):
        return stream.count()
    if stream.frames is not None:
        return stream.frames
    return sum(len(block) for block in stream.read(0, None, 1 << 20))
