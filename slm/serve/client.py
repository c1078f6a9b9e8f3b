"""A client of `focalstream serve`. The protocol is in docs/serving.md.

async with connect("ws://127.0.0.1:8000/v1/stream") as client:
    await client.start(seconds=6, seed=1)
    await client.send(pcm)                          # 16-bit little-endian mono; while recording, or all at once
    async for sound in client.go_on():
        play(sound.samples)                         # int16 at client.models["sample_rate_out"]
    print(client.done)                              # reason, seconds, first_audio_ms, late_chunks

With connect(..., sound_format="opus", prompt_format="opus") sound takes a tenth of the network; it needs PyAV.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import numpy as np
import websockets

from slm.generation.opus import DECODED_RATE, MESSAGE_PACKETS, PCM, SKIP, OpusDecoder, OpusEncoder
from slm.serve.protocol import SPEECH, VERSION, unpack

FRAME_BYTES = 32768  # bytes of a prompt in one message, at most


class Sound(NamedTuple):
    """A frame from the server: tokens uint16 [T] and samples int16 [S], of the prompt or of new speech."""

    new: bool
    codes: np.ndarray
    samples: np.ndarray


class ServerError(Exception):
    """An error from the server; `code` is its machine-readable code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Client:
    """A connection after the hello messages. `models` and `limits` are the server's; `done` ends the last stream."""

    def __init__(self, socket: Any, sound_format: str = PCM, prompt_format: str = PCM) -> None:
        wanted = {"sound_format": sound_format, "prompt_format": prompt_format}
        self._socket, self._formats = socket, {name: one for name, one in wanted.items() if one != PCM}
        self._encoder: OpusEncoder | None = None
        self._sound = ReceivedSound(1, 1)
        self.models: dict[str, Any] = {}
        self.limits: dict[str, Any] = {}
        self.done: dict[str, Any] = {}

    async def hello(self, token: str | None) -> None:
        """Exchange hello messages. Raises ServerError."""
        await self.tell(type="hello", version=VERSION, **({} if token is None else {"token": token}))
        answer = await self.receive()
        self.models, self.limits = answer["models"], answer["limits"]
        for wanted in self._formats.values():
            if wanted not in (known := answer.get("formats", [PCM])):  # a server of an earlier version has none
                raise ServerError("no_format", f"the server has no {wanted}, only {', '.join(known)}")

    async def start(self, **settings: Any) -> None:
        """Start a stream and wait for a slot. `settings` are the fields of `start`. Raises ServerError, also for
        "full".
        """
        await self.tell(type="start", **{**self._formats, **settings})
        while True:  # first the remaining messages of a cancelled stream
            message = await self.receive()
            kind = None if isinstance(message, Sound) else message["type"]
            if kind == "ready":
                self._sound = ReceivedSound(self.models["sample_rate_out"], self.models["samples_per_token"])
                rate = settings.get("rate", self.models["sample_rate_in"])
                self._encoder = OpusEncoder(rate) if "prompt_format" in self._formats else None
                return
            if kind == "done" and message["reason"] != "cancelled":
                raise ServerError(message["reason"], "no slot is free, and the queue is full; try again later")

    async def send(self, pcm: bytes) -> None:
        """Send more of the prompt."""
        size = FRAME_BYTES if self._encoder is None else self._encoder.bytes_of(MESSAGE_PACKETS)
        for begin in range(0, len(pcm), size):
            piece = pcm[begin : begin + size]
            await self._send(piece if self._encoder is None else self._encoder.encode(piece))

    async def go_on(self) -> AsyncIterator[Sound]:
        """End the prompt and yield the rest of its frames, then new speech. Raises ServerError."""
        if self._encoder is not None:
            await self._send(self._encoder.end())
        await self.tell(type="continue")
        while not isinstance(message := await self.receive(), dict) or message["type"] != "done":
            if isinstance(message, Sound):
                yield message
        self.done = message

    async def cancel(self) -> None:
        """End the stream; `go_on` then returns."""
        await self.tell(type="cancel")

    async def tell(self, **message: Any) -> None:
        """Send a control message."""
        await self._socket.send(json.dumps(message))

    async def receive(self) -> Any:
        """The next message: a dict or a Sound. Raises ServerError."""
        try:
            data = await self._socket.recv()
        except websockets.ConnectionClosed as closed:
            raise ServerError("closed", str(closed)) from None
        if isinstance(data, bytes):
            kind, sound_format, codes, sound = unpack(data)
            return Sound(kind == SPEECH, codes, self._sound.samples(sound_format, codes, sound))
        message = json.loads(data)
        if message["type"] == "error":
            raise ServerError(message["code"], message["message"])
        return message

    async def _send(self, sound: bytes) -> None:
        if sound:  # otherwise it is less than a packet
            await self._socket.send(sound)


class ReceivedSound:
    """The sound of one stream as samples, of either format.

    Args:
        rate: Hz.
        samples_per_token: of the codec.
    """

    def __init__(self, rate: int, samples_per_token: int) -> None:
        self._step, self._per_token = DECODED_RATE // rate, samples_per_token
        self._decoder: OpusDecoder | None = None
        self._skip, self._owed = SKIP, 0  # samples at 48 kHz still to skip; samples of tokens that were not given yet

    def samples(self, sound_format: str, codes: np.ndarray, sound: bytes) -> np.ndarray:
        """int16 [S] of a message. In Opus they lag the tokens by 6.5 ms, and a message without tokens has the rest."""
        if sound_format == PCM:
            return np.frombuffer(sound, "<i2")
        self._decoder = self._decoder or OpusDecoder()
        decoded = self._decoder.decode(sound)
        skipped = min(self._skip, len(decoded))
        self._skip -= skipped
        self._owed += len(codes) * self._per_token
        samples = decoded[skipped :: self._step][: self._owed]
        self._owed -= len(samples)
        return samples


@asynccontextmanager
async def connect(
    url: str, token: str | None = None, origin: str | None = None, sound_format: str = PCM, prompt_format: str = PCM
) -> AsyncIterator[Client]:
    """Connect to ws://HOST:PORT/v1/stream. Raises ServerError, OSError, websockets.InvalidStatus.

    Args:
        url: of the server.
        token: of the server, if it has one.
        origin: that a page would have.
        sound_format, prompt_format: what is on the wire, "pcm" or "opus"; the caller gives and gets PCM.
    """
    async with websockets.connect(url, origin=origin, compression=None) as socket:  # type: ignore[arg-type]
        client = Client(socket, sound_format, prompt_format)
        await client.hello(token)
        yield client
