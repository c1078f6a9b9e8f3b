"""One WebSocket connection: a hello, then one stream after another."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any, NamedTuple

import anyio
import numpy as np
import soxr
from starlette.websockets import WebSocket, WebSocketDisconnect

from slm.generation.opus import DECODED_RATE, MESSAGE_PACKETS, OPUS, OpusDecoder, OpusEncoder, formats
from slm.serve.messages import Cancel, Done, EndPrompt, Event, Feed, Open, Queued, Ready, Sound
from slm.serve.protocol import (
    BAD_TOKEN,
    GOING_AWAY,
    POLICY,
    PROMPT,
    SPEECH,
    TOO_FAST,
    TOO_SLOW,
    VERSION,
    Budget,
    Refused,
    check_fields,
    pack,
    parse,
    parse_start,
    samples_of,
)
from slm.serve.service import Service, log
from tokenizer.errors import InputError

SEND_SECONDS = 5.0  # timeout of a send, after which the client is dropped
BURST_SECONDS = 4  # burst size of the rate limit
BURST_STARTS = 10  # streams that a client may start at once after a pause
SESSIONS = itertools.count(1)


class Frame(NamedTuple):
    """A binary message that waits to be sent. It is encoded when it is sent, so that a burst does not delay others."""

    sound: Sound | None  # None: the end of a stream
    sequence: int
    encoder: OpusEncoder | None  # of the stream; None: PCM

    def packed(self) -> bytes:
        if self.sound is None:
            assert self.encoder is not None, "PCM needs no end"
            return pack(SPEECH, self.sequence, np.zeros(0, np.uint16), self.encoder.end(), OPUS)
        kind, codes, pcm = SPEECH if self.sound.new else PROMPT, self.sound.codes, self.sound.pcm
        if self.encoder is None:
            return pack(kind, self.sequence, codes, pcm)
        return pack(kind, self.sequence, codes, self.encoder.encode(pcm), OPUS)


class Session:
    """The session of a connection. `run` returns when it is over and everything is cleaned up."""

    def __init__(self, socket: WebSocket, service: Service, address: str = "") -> None:
        self._socket, self._service, self._limits, self._address = socket, service, service.limits, address
        self._number = next(SESSIONS)
        self._outbox: asyncio.Queue[dict[str, Any] | Frame] = asyncio.Queue(self._limits.unread_frames)
        rate = self._limits.messages_per_second
        self._messages = Budget(rate, BURST_SECONDS * rate)
        self._starts = Budget(self._limits.starts_per_second, BURST_STARTS)
        self._spoke = time.monotonic()  # when the client last sent something
        self._stream: int | None = None
        self._ready = self._prompt_ended = False
        self._resampler: soxr.ResampleStream | None = None
        self._decoder: OpusDecoder | None = None  # of the prompt
        self._encoder: OpusEncoder | None = None  # of the stream's sound
        self._formats = formats(service.model.models.sample_rate_out)
        self._rate = self._prompt_samples = self._sequence = 0
        self._over: asyncio.Future[Refused] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Serve the client until it leaves, is refused, or its time is up."""
        began = time.monotonic()
        talk = [asyncio.create_task(work) for work in (self._receive_all(), self._send_all())]
        watched: list[asyncio.Future[Any]] = [*talk, self._over]
        try:
            await asyncio.wait(watched, timeout=self._limits.session_seconds, return_when="FIRST_COMPLETED")
            ended = self._why(talk)
        finally:
            self._cancel()
            for task in talk:
                task.cancel()
            await asyncio.gather(*talk, return_exceptions=True)
        if ended:
            self._service.metrics.refused.labels(ended.code).inc()
            with suppress(RuntimeError, WebSocketDisconnect), anyio.move_on_after(1.0):
                await self._send_refusal(ended)
        log(
            "session",
            session=self._number,
            address=self._address,
            seconds=round(time.monotonic() - began, 2),
            ended=ended.code if ended else "left",
        )

    @property
    def idle_seconds(self) -> float:
        return 0.0 if self._stream is not None else time.monotonic() - self._spoke

    def close(self, refused: Refused) -> None:
        """End the session from the server's side."""
        if not self._over.done():
            self._over.set_result(refused)

    def _why(self, talk: list[asyncio.Task[None]]) -> Refused | None:
        """Why the session is over; None: the client left."""
        if self._over.done():
            return self._over.result()
        for task in talk:
            if task.done() and isinstance(error := task.exception(), Refused):
                return error
            if task.done() and error is not None and not isinstance(error, WebSocketDisconnect):
                raise error
        if any(task.done() for task in talk):
            return None
        return Refused(
            "session_time", f"a session lasts at most {self._limits.session_seconds:g} s; connect again", GOING_AWAY
        )

    async def _send_refusal(self, refused: Refused) -> None:
        await self._socket.send_json({"type": "error", "code": refused.code, "message": refused.message})
        await self._socket.close(refused.close or POLICY, refused.code)

    # ---- from the client ------------------------------------------------------------------------------------------

    async def _receive_all(self) -> None:
        try:
            with anyio.fail_after(self._limits.hello_seconds):
                first = await self._socket.receive()
        except TimeoutError:
            raise Refused("no_hello", f"no hello in {self._limits.hello_seconds:g} s", POLICY) from None
        await self._hello(first)
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            self._count_message()
            await asyncio.sleep(0)  # lets others run first if many messages have arrived together
            await self._service.room()
            try:
                if (data := message.get("bytes")) is not None:
                    self._audio(data)
                else:
                    self._control(parse(message["text"], self._limits.control_bytes))
            except Refused as refused:
                if refused.close is not None:
                    raise
                self._service.metrics.refused.labels(refused.code).inc()
                self._tell({"type": "error", "code": refused.code, "message": refused.message})

    async def _hello(self, message: Any) -> None:
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        hello = parse(message.get("text") or "", self._limits.control_bytes)
        if hello["type"] != "hello" or type(hello.get("version")) is not int or hello["version"] != VERSION:
            raise Refused("bad_hello", f'expected {{"type": "hello", "version": {VERSION}}} first', POLICY)
        check_fields(hello, {"version", "token"}, "bad_hello", POLICY)
        token = hello.get("token")
        given = None if token is None else str(token).encode("utf-8", "surrogatepass")
        if not isinstance(token, str | None) or not await self._service.admits(given, self._address):
            raise Refused("bad_token", "the token is missing or wrong", BAD_TOKEN)
        models = asdict(self._service.model.models)
        limits = asdict(self._limits)
        self._tell({"type": "hello", "version": VERSION, "models": models, "limits": limits, "formats": self._formats})

    def _count_message(self) -> None:
        self._spoke = time.monotonic()
        if not self._messages.take():
            raise Refused(
                "too_many_messages", f"more than {self._limits.messages_per_second} messages a second", TOO_FAST
            )

    def _control(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "start":
            self._start(message)
        elif kind == "continue":
            check_fields(message, set())
            if self._stream is None or not self._ready or self._prompt_ended:
                raise Refused("not_ready", "continue: no stream is taking a prompt; start one, and wait for ready")
            self._end_prompt()
        elif kind == "cancel":
            check_fields(message, set())
            self._cancel()
        else:
            raise Refused("bad_message", f"unknown type {kind[:40]!r}; known are start, continue, cancel", POLICY)

    def _start(self, message: dict[str, Any]) -> None:
        if self._stream is not None:
            raise Refused("busy", "start: this connection already has a stream; cancel it first")
        if self._service.draining or self._service.dead:
            raise Refused("stopping", "the server is stopping; connect again in a moment")
        models = self._service.model.models
        start = parse_start(message, models.sample_rate_in, self._limits, self._formats)
        if not self._starts.take():
            most = f"{BURST_STARTS} at once and {self._limits.starts_per_second:g} a second"
            raise Refused("too_many_starts", f"start: a client may start {most}; try again in a moment")
        self._decoder = OpusDecoder() if start.prompt_format == OPUS else None
        self._encoder = OpusEncoder(models.sample_rate_out) if start.sound_format == OPUS else None
        self._rate = DECODED_RATE if self._decoder else start.rate
        self._prompt_samples = self._sequence = 0
        self._ready = self._prompt_ended = False
        self._resampler = None
        if self._rate != models.sample_rate_in:
            self._resampler = soxr.ResampleStream(self._rate, models.sample_rate_in, 1, dtype="float32")
        self._stream = self._service.open(self._on_event)
        self._service.send(Open(self._stream, start.request))

    def _audio(self, data: bytes) -> None:
        if self._prompt_ended:
            return  # audio that was sent before the end of the prompt or stream was known
        if not self._ready or self._stream is None:
            raise Refused("not_ready", "audio before ready: start a stream, and wait for ready")
        samples = samples_of(data if self._decoder is None else self._decoded(self._decoder, data))
        self._prompt_samples += len(samples)
        if self._prompt_samples > self._limits.prompt_seconds * self._rate:
            self._cancel()
            raise Refused("prompt_too_long", f"a prompt has at most {self._limits.prompt_seconds:g} s")
        self._feed(samples)

    @staticmethod
    def _decoded(decoder: OpusDecoder, data: bytes) -> bytes:
        try:
            return decoder.decode(data, MESSAGE_PACKETS).tobytes()
        except InputError as error:
            raise Refused("bad_audio", str(error), POLICY) from None

    def _feed(self, samples: np.ndarray, last: bool = False) -> None:
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last=last)
        if len(samples) and self._stream is not None:
            self._service.send(Feed(self._stream, samples))

    def _end_prompt(self) -> None:
        assert self._stream is not None
        self._prompt_ended = True
        at = time.monotonic()
        self._feed(np.zeros(0, np.float32), last=True)
        self._service.send(EndPrompt(self._stream, at))

    def _cancel(self) -> None:
        if self._stream is not None:
            self._service.send(Cancel(self._stream))
            self._service.forget(self._stream)
            self._stream, self._prompt_ended = None, True
            self._tell({"type": "done", "reason": "cancelled"})
            log("stream", session=self._number, reason="cancelled")

    # ---- to the client --------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Queued):
            self._tell({"type": "queued", "position": event.position})
        elif isinstance(event, Ready):
            self._ready = True
            self._tell({"type": "ready"})
            stream, seconds = event.stream, 2 * self._limits.prompt_seconds
            asyncio.get_running_loop().call_later(seconds, self._give_up, stream)
        elif isinstance(event, Sound):
            self._tell(Frame(event, self._sequence, self._encoder))
            self._sequence += 1
        elif isinstance(event, Done):
            self._stream = None
            if self._encoder and self._sequence:
                self._tell(Frame(None, self._sequence, self._encoder))
            values = {
                "reason": event.reason,
                "seconds": round(event.seconds, 3),
                "first_audio_ms": None if event.first_audio_ms is None else round(event.first_audio_ms, 1),
                "late_chunks": event.missed,
            }
            self._tell({"type": "done", **values})
            log("stream", session=self._number, **values)

    def _give_up(self, stream: int) -> None:
        """Cancel a stream whose prompt does not end, so that it frees its slot."""
        if self._stream == stream and not self._prompt_ended:
            self._cancel()
            message = f"no continue in {2 * self._limits.prompt_seconds:g} s"
            self._tell({"type": "error", "code": "prompt_timeout", "message": message})

    def _tell(self, message: dict[str, Any] | Frame) -> None:
        try:
            self._outbox.put_nowait(message)
        except asyncio.QueueFull:
            self.close(Refused("slow_reader", "the client does not read what it is sent", TOO_SLOW))

    async def _send_all(self) -> None:
        while True:
            message = await self._outbox.get()
            try:
                with anyio.fail_after(SEND_SECONDS):  # not `wait_for`, which before Python 3.12 may lose a cancellation
                    if isinstance(message, Frame):
                        await asyncio.sleep(0)  # encoding takes a while, and many messages may wait
                        await self._socket.send_bytes(message.packed())
                    else:
                        await self._socket.send_json(message)
            except TimeoutError:
                raise Refused("slow_reader", "the client does not read what it is sent", TOO_SLOW) from None
