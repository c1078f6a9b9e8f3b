"""Opus for sound on a network: packets of 20 ms, about 22 kbit/s of speech in place of PCM's 256 to 768. Needs PyAV.

A message holds packets, each after its length as a uint16. Opus decoders give 48 kHz, whatever was encoded. What was
encoded from R Hz has nothing above R / 2, so every (48000 / R)-th sample of that is the sound at R Hz again.

Legend: S samples.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from tokenizer.errors import InputError

PCM, OPUS = "pcm", "opus"
DECODED_RATE = 48000  # Hz
RATES = (8000, 12000, 16000, 24000, 48000)  # Hz that Opus encodes
PACKETS_PER_SECOND = 50
SKIP = 312  # samples at 48 kHz by which decoded sound lags: so far the encoder looks ahead
BITRATE = 24_000  # bit/s, on average at most
MESSAGE_PACKETS = 25  # in a message to the server, at most: decoding must not take long
LENGTH = struct.Struct("<H")


def formats(rate: int) -> tuple[str, ...]:
    """The formats in which sound of `rate` Hz can be sent with the packages that are installed."""
    if rate not in RATES:
        return (PCM,)
    try:
        import av
    except ImportError:
        return (PCM,)
    return (PCM, OPUS) if "libopus" in av.codecs_available else (PCM,)


class OpusEncoder:
    """Encodes a stream of sound.

    Args:
        rate: Hz of the sound, one of RATES.

    Raises:
        InputError: the rate is another.
    """

    def __init__(self, rate: int) -> None:
        from av import AudioFrame, CodecContext

        if rate not in RATES:
            raise InputError(f"Opus: {rate} Hz; expected one of {', '.join(map(str, RATES))}; resample it")
        self._size = rate // PACKETS_PER_SECOND
        self._rest = np.zeros(0, np.int16)  # less than a packet
        self._tail = -(-SKIP * rate // DECODED_RATE)
        self._frame_of = AudioFrame.from_ndarray
        self._context: Any = CodecContext.create("libopus", "w")
        self._context.sample_rate, self._context.layout, self._context.format = rate, "mono", "s16"
        self._context.bit_rate = BITRATE
        self._context.options = {"application": "voip", "frame_duration": "20", "compression_level": "5"}
        self._context.open()

    def bytes_of(self, packets: int) -> int:
        """Bytes of the PCM of so many packets."""
        return 2 * self._size * packets

    def encode(self, pcm: bytes) -> bytes:
        """The whole packets of what was not encoded yet and of `pcm`, 16-bit samples."""
        samples = np.concatenate((self._rest, np.frombuffer(pcm, "<i2")))
        whole = len(samples) // self._size * self._size
        self._rest = samples[whole:]
        return b"".join(map(self._packet, samples[:whole].reshape(-1, self._size)))

    def end(self) -> bytes:
        """The packets with the rest of the sound, followed by silence, so that decoders give all of it."""
        missing = -(len(self._rest) + self._tail) % self._size
        return self.encode(bytes(2 * (self._tail + missing)))

    def _packet(self, samples: np.ndarray) -> bytes:
        frame = self._frame_of(samples[None], format="s16", layout="mono")
        frame.sample_rate = self._context.sample_rate
        (packet,) = self._context.encode(frame)
        return LENGTH.pack(packet.size) + bytes(packet)


class OpusDecoder:
    """Decodes a stream of packets of any encoder."""

    def __init__(self) -> None:
        from av import CodecContext, Packet

        self._packet_of = Packet
        self._context: Any = CodecContext.create("libopus", "r")
        self._context.sample_rate, self._context.layout = DECODED_RATE, "mono"
        self._context.open()

    def decode(self, message: bytes, most: int | None = None) -> np.ndarray:
        """int16 [S] at 48 kHz of a message of packets. Raises InputError: they are none, or more than `most`."""
        from av import FFmpegError

        sound = []
        for number, packet in enumerate(split(message)):
            if most is not None and number == most:
                raise InputError(f"a message has more than {most} packets of Opus; send fewer at once")
            try:
                sound += [frame.to_ndarray()[0] for frame in self._context.decode(self._packet_of(packet))]
            except FFmpegError:
                raise InputError(f"packet {number + 1} of a message is not Opus") from None
        return np.concatenate(sound or [np.zeros(0, np.int16)])


def split(message: bytes) -> Iterator[bytes]:
    """The packets of a message. Raises InputError."""
    at = 0
    while at < len(message):
        begin = at + LENGTH.size
        at = begin + LENGTH.unpack_from(message, at)[0] if begin <= len(message) else begin
        if not begin < at <= len(message):
            raise InputError("a message is not packets of Opus, each after its length as a uint16")
        yield message[begin:at]
