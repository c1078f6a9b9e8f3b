"""What libsndfile does not read (M4A, AAC, WebM, MP4, WMA, AMR, ...), through PyAV, which brings FFmpeg's decoders.

Files are decoded from the first packet to the last. The length that a container states is only compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tokenizer.audio_input.byte_source import ByteSource, VirtualFile
from tokenizer.audio_input.container_ends import is_live_asf
from tokenizer.audio_input.contents import BadAudio
from tokenizer.audio_input.kinds import MEDIA_FORMATS
from tokenizer.audio_input.mpeg import DECODER_DELAY, LAYER_2_DELAY, LAYER_3_DELAY, parse_header

TOLERANCE_SECONDS = 0.2  # containers round, and count the samples that a decoder drops at the beginning
_SCALES = {"u8": 128.0, "s16": 32768.0, "s32": 2147483648.0}
_SAYS_LENGTH = ("MP4", "Matroska", "ASF", "AVI", "WavPack", "TTA", "APE")  # for others FFmpeg guesses by bit rate
_EXACT_TIMES = ("MP4",)  # to the sample, so that a reader may begin in the middle
PREROLL_SECONDS = 1.0  # decoded before the first sample asked for
_DELAYS = {"ac3": 256, "eac3": 256, "amrnb": 40, "libopencore_amrnb": 40}
"""Samples of delay before the first sample, by codec, for containers that do not state it; for AAC it is one frame.
These are the smallest delays possible: blocks overlap, and of the first block only half can be decoded (MP3: see
`mpeg`). AMR looks 40 samples ahead (3GPP TS 26.071)."""
AAC_FRAME = 1024
ROUNDING_SECONDS = 0.001  # of an edit list, whose clock mostly counts thousandths


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
            says_length = kind in _SAYS_LENGTH and not (kind == "ASF" and is_live_asf(source))
            seconds = container.seconds() if says_length else 0.0
            self._delay = container.delay()
            # A decoder of AMR depends on every packet before.
            self._may_seek = kind in _EXACT_TIMES and "amr" not in audio.codec_context.name
        self.frames = max(0, round(seconds * self.sample_rate) - self._delay) or None

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
        at = -self._delay
        with _Container(self._source, self._kind) as container:
            sought = self._may_seek and start > 2 * PREROLL_SECONDS * self.sample_rate
            if sought:
                container.seek(start / self.sample_rate - PREROLL_SECONDS)
            first = True
            for frame, size in container.frames():
                if frame.sample_rate != self.sample_rate or frame.layout.nb_channels != self.channels:
                    raise BadAudio("damaged", "its rate or its number of channels changes on the way")
                data = _samples(frame)[:size]
                if first and sought:
                    at += round(container.since_start(frame) * self.sample_rate)
                first = False
                if at + len(data) > start:
                    yield data[max(0, start - at) :]
                at += len(data)


class _Container:
    """An open container of FFmpeg, and the virtual file that it reads."""

    def __init__(self, source: ByteSource, kind: str) -> None:
        av = _pyav()
        self._kind = kind
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

    def delay(self) -> int:
        """Samples by which the audio comes late; 0 where the container says it, because FFmpeg then drops them. Takes
        the first packet."""
        codec = self.audio.codec_context
        name = codec.name.partition("float")[0].partition("_fixed")[0]
        if name not in (*_DELAYS, "aac", "mp1", "mp2", "mp3"):
            return 0
        packet = next(self._container.demux(self.audio), None)
        if packet is None or (None not in (packet.pts, self.audio.start_time) and packet.pts < self.audio.start_time):
            return 0
        if name == "aac":
            return codec.frame_size or AAC_FRAME
        if name in _DELAYS:
            return _DELAYS[name]
        frame = parse_header(bytes(packet)[:4])  # an MPEG-TS does not say which layer it is
        return LAYER_3_DELAY + DECODER_DELAY if frame is None or frame.layer == 3 else LAYER_2_DELAY

    def seek(self, seconds: float) -> None:
        begin = self.audio.start_time or 0
        self._container.seek(begin + int(seconds / self.audio.time_base), stream=self.audio)

    def since_start(self, frame: Any) -> float:
        """Seconds from the first sample of the stream to the first of a frame."""
        return float((frame.pts - (self.audio.start_time or 0)) * self.audio.time_base)

    def frames(self) -> Iterator[tuple[Any, int]]:
        """Every decoded frame from where it stands, and how many of its samples count, as the last is filled up.
        Raises BadAudio where one cannot be decoded."""
        after = 0.0  # seconds, of what is sound
        end, last = None, None  # of the packets; the frame that another may follow
        try:
            for packet in self._container.demux(self.audio):
                if packet.pts is not None and packet.duration:
                    end = packet.pts + packet.duration
                for frame in packet.decode():
                    if last is not None:
                        yield last, last.samples
                    last = None
                    if packet.is_corrupt or frame.is_corrupt:
                        raise BadAudio("damaged", f"the audio is damaged after {after:.3f} s")
                    after += frame.samples / frame.sample_rate
                    last = frame
        except EOFError:
            pass
        except self._error as error:
            if last is not None:
                yield last, last.samples
            self._virtual.check()
            raise BadAudio(
                "damaged", f"the audio cannot be decoded after {after:.3f} s ({error.__class__.__name__})"
            ) from None
        if last is not None:
            yield last, self._counted(last, end)
        self._virtual.check()

    def _counted(self, last: Any, end: int | None) -> int:
        """Samples of the last frame before the end by packets and edit list."""
        if self._kind not in _EXACT_TIMES or end is None or last.pts is None:
            return last.samples
        seconds = end * self.audio.time_base
        if self.audio.duration:
            edited = (self.audio.start_time or 0) + self.audio.duration
            seconds = min(seconds, edited * self.audio.time_base + ROUNDING_SECONDS)
        samples = round((seconds - last.pts * last.time_base) * last.sample_rate)
        return samples if 0 < samples < last.samples else last.samples


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
