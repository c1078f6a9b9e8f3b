"""A client of `focalstream serve`. The protocol is in docs/serving.md.

async with connect("ws://127.0.0.1:8000/v1/stream") as client:
    await client.start(seconds=6, seed=1)
    await client.send(pcm)                          # 16-bit little-endian mono; while recording, or all at once
    async for sound in client.go_on():
        play(sound.samples)                         # int16 at client.models["sample_rate_out"]
    print(client.done)                              # reason, seconds, first_audio_ms, late_chunks
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import numpy as np
import websockets

from slm.serve.protocol import SPEECH, VERSION, unpack

FRAME_BYTES = 32768  # bytes of a prompt in one message


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

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self.models: dict[str, Any] = {}
        self.limits: dict[str, Any] = {}
        self.done: dict[str, Any] = {}

    async def hello(self, token: str | None) -> None:
        """Exchange hello messages. Raises ServerError."""
        await self.tell(type="hello", version=VERSION, **({} if token is None else {"token": token}))
        answer = await self.receive()
        self.models, self.limits = answer["models"], answer["limits"]

    async def start(self, **settings: Any) -> None:
        """Start a stream and wait for a slot. `settings` are the fields of `start`. Raises ServerError, also for
        "full".
        """
        await self.tell(type="start", **settings)
        while True:  # first the remaining messages of a cancelled stream
            message = await self.receive()
            kind = None if isinstance(message, Sound) else message["type"]
            if kind == "ready":
                return
            if kind == "done" and message["reason"] != "cancelled":
                raise ServerError(message["reason"], "no slot is free, and the queue is full; try again later")

    async def send(self, pcm: bytes) -> None:
        """Send more of the prompt."""
        for begin in range(0, len(pcm), FRAME_BYTES):
            await self._socket.send(pcm[begin : begin + FRAME_BYTES])

    async def go_on(self) -> AsyncIterator[Sound]:
        """End the prompt and yield the rest of its frames, then new speech. Raises ServerError."""
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
            kind, _, codes, samples = unpack(data)
            return Sound(kind == SPEECH, codes, samples)
        message = json.loads(data)
        if message["type"] == "error":
            raise ServerError(message["code"], message["message"])
        return message


@asynccontextmanager
async def connect(url: str, token: str | None = None, origin: str | None = None) -> AsyncIterator[Client]:
    """Connect to ws://HOST:PORT/v1/stream. Raises ServerError, OSError, websockets.InvalidStatus."""
    async with websockets.connect(url, origin=origin, compression=None) as socket:  # type: ignore[arg-type]
        client = Client(socket)
        await client.hello(token)
        yield client
