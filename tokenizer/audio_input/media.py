"""What libsndfile does not read (M4A, AAC, WebM, MP4, WMA, AMR, ...), through PyAV, which brings FFmpeg's decoders.

Files are decoded from the first packet to the last; what a container says of its length is only compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tokenizer.audio_input.byte_source import ByteSource, VirtualFile
from tokenizer.audio_input.contents import BadAudio
from tokenizer.audio_input.kinds import MEDIA_FORMATS

TOLERANCE_SECONDS = 0.2  # containers round, and count the samples that a decoder needs to begin with
_SCALES = {"u8": 128.0, "s16": 32768.0, "s32": 2147483648.0}
_SAYS_LENGTH = ("MP4", "Matroska", "ASF", "AVI", "WavPack", "TTA", "APE")  # others guess it from their bit rate
_EXACT_TIMES = ("MP4",)  # to the sample, so that a reader may begin in the middle
PREROLL_SECONDS = 1.0  # decoded before the first sample asked for


class MediaStream:
    """The first audio stream of a file.

    Attributes:
        sample_rate: Hz.
        channels: how many.
        frames: that its container announces; None where it announces none, or guesses.

    Raises:
        BadAudio: FFmpeg finds no audio in it, or PyAV is not installed.
    """

    def __init__(self, source: ByteSource, kind: str) -> None:
        self._source, self._kind = source, kind
        with _Container(source, kind) as container:
            audio = container.audio
            self.sample_rate, self.channels = audio.codec_context.sample_rate, audio.codec_context.channels
            if not self.sample_rate or not self.channels:
                raise BadAudio("unreadable", "its audio stream says no rate or no channels")
            seconds = container.seconds() if kind in _SAYS_LENGTH else 0.0
        self.frames = round(seconds * self.sample_rate) or None

    def count(self) -> int:
        """Frames that decoding gives."""
        return sum(len(block) for block in self._blocks(0, None))

    def read(self, start: int, frames: int | None, block: int) -> Iterator[np.ndarray]:
        """float32 blocks [n, C] of up to `frames` frames (None: all) from frame `start` on.

        Raises:
            BadAudio: a packet cannot be decoded, or the container announces more.
        """
        held: list[np.ndarray] = []
        size = 0
        for data in self._blocks(start, frames):
            held.append(data)
            size += len(data)
            if size >= block:
                yield np.concatenate(held)
                held, size = [], 0
        if held:
            yield np.concatenate(held)

    def _blocks(self, start: int, frames: int | None) -> Iterator[np.ndarray]:
        done = start
        end = None if frames is None else start + frames
        for data in self._decoded(start):
            data = data if end is None else data[: end - done]
            done += len(data)
            if len(data):
                yield data
            if done == end:
                return
        tolerance = TOLERANCE_SECONDS * self.sample_rate
        if self.frames is not None and self.frames - done > tolerance and (end is None or end - done > tolerance):
            raise BadAudio(
                "truncated",
                f"its container announces {self.frames / self.sample_rate:.3f} s, but "
                f"{done / self.sample_rate:.3f} s of it can be decoded",
            )

    def _decoded(self, start: int) -> Iterator[np.ndarray]:
        """Blocks [n, C] of one decoded packet each, from frame `start` on."""
        at = 0
        with _Container(self._source, self._kind) as container:
            sought = self._kind in _EXACT_TIMES and start > 2 * PREROLL_SECONDS * self.sample_rate
            if sought:
                container.seek(start / self.sample_rate - PREROLL_SECONDS)
            first = True
            for frame in container.frames():
                if frame.sample_rate != self.sample_rate or frame.layout.nb_channels != self.channels:
                    raise BadAudio("damaged", "its rate or its number of channels changes on the way")
                data = _samples(frame)
                if first and sought:
                    at = round(float(frame.pts * frame.time_base) * self.sample_rate)
                first = False
                if at + len(data) > start:
                    yield data[max(0, start - at) :]
                at += len(data)


class _Container:
    """An open container of FFmpeg, and the virtual file that it reads."""

    def __init__(self, source: ByteSource, kind: str) -> None:
        av = _pyav()
        self._error = av.error.FFmpegError
        self._virtual = VirtualFile(source, [(0, source.size)])
        try:
            # no other file is opened, whatever this one refers to
            self._container = av.open(
                self._virtual, format=MEDIA_FORMATS[kind], metadata_errors="replace", options={"protocol_whitelist": ""}
            )
        except (self._error, ValueError) as error:
            self._virtual.check()
            raise BadAudio("unreadable", f"FFmpeg finds no {kind} in it ({error.__class__.__name__})") from None
        if not self._container.streams.audio:
            self._container.close()
            raise BadAudio("unreadable", f"there is no audio in this {kind} file")
        self.audio = self._container.streams.audio[0]
        if self.audio.codec_context is None:
            self._container.close()
            raise BadAudio("unreadable", f"FFmpeg has no decoder for the audio in this {kind} file")
        self.audio.codec_context.thread_count = 1
        self.audio.codec_context.options = {"err_detect": "crccheck+explode"}  # damage is an error, not concealed

    def __enter__(self) -> _Container:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def seconds(self) -> float:
        if self.audio.duration is not None and self.audio.time_base is not None:
            return float(self.audio.duration * self.audio.time_base)
        if self._container.duration is None:
            return 0.0
        return (self._container.duration - max(0, self._container.start_time or 0)) / 1e6  # the former is where it ends

    def seek(self, seconds: float) -> None:
        self._container.seek(int(seconds / self.audio.time_base), stream=self.audio)

    def frames(self) -> Iterator[Any]:
        """Every decoded frame from where it stands. Raises BadAudio where one cannot be decoded."""
        after = 0.0  # seconds, of what is sound
        try:
            for packet in self._container.demux(self.audio):
                for frame in packet.decode():
                    if packet.is_corrupt or frame.is_corrupt:
                        raise BadAudio("damaged", f"the audio is damaged after {after:.3f} s")
                    after += frame.samples / frame.sample_rate
                    yield frame
        except EOFError:
            return
        except self._error as error:
            self._virtual.check()
            raise BadAudio(
                "damaged", f"the audio cannot be decoded after {after:.3f} s ({error.__class__.__name__})"
            ) from None
        self._virtual.check()


def _samples(frame: Any) -> np.ndarray:
    """float32 [n, C] in [-1, 1] of a decoded frame."""
    data, name = frame.to_ndarray(), frame.format.name
    channels = frame.layout.nb_channels
    data = data.T if name.endswith("p") else data.reshape(-1, channels)
    scale = _SCALES.get(name.removesuffix("p"))
    if scale is None:
        return np.ascontiguousarray(data, np.float32)
    return (data.astype(np.float64) / scale - (name[0] == "u")).astype(np.float32)


def _pyav() -> Any:
    try:
        import av
    except ImportError:
        raise BadAudio("unreadable", "its kind needs PyAV: pip install 'focalstream[media]'") from None
    return av
