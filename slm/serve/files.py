"""Short files over HTTP: encode, decode and continue. Live streams have priority over them.

In these endpoints `Refused.close` is the HTTP status.
"""

from __future__ import annotations

import asyncio
import io
import json
import tempfile
import time
import wave
from collections.abc import Callable
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from slm.serve.messages import Cancel, Command, Decode, Done, Encode, EndPrompt, Event, Feed, Open, Ready, Sound
from slm.serve.protocol import Refused, parse_start
from slm.serve.service import Service
from tokenizer.audio import read_audio
from tokenizer.errors import InputError

BUSY_SECONDS = 120.0  # timeout of a request


async def encode_file(service: Service, request: Request) -> Response:
    """An audio file in the body -> JSON: `tokens`, `token_rate`, `fingerprint`."""
    samples = await uploaded_audio(service, request)
    done = await one_job(service, request, lambda number: Encode(number, samples))
    models = service.model.models
    tokens = np.frombuffer(done.result, "<u2").tolist()
    return JSONResponse({"tokens": tokens, "token_rate": models.token_rate, "fingerprint": models.fingerprint})


async def decode_file(service: Service, request: Request) -> Response:
    """The JSON of `encode_file`, of which only `tokens` is required -> a WAV file."""
    models = service.model.models
    try:
        message = json.loads(await body_of(service, request))
        codes, unknown = np.asarray(message["tokens"]), sorted(set(message) - {"tokens", "fingerprint", "token_rate"})
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Refused("bad_request", 'expected JSON: {"tokens": [...]}') from None
    if unknown:
        raise Refused("bad_request", f"unknown field {unknown[0][:40]!r}; known are fingerprint, token_rate, tokens")
    longest = int(service.limits.speech_seconds * models.token_rate)
    if codes.ndim != 1 or codes.dtype.kind != "i" or not 0 < len(codes) <= longest:
        raise Refused("bad_request", f"tokens: expected 1 to {longest} whole numbers")
    if codes.min() < 0 or codes.max() >= models.codebook_size:
        raise Refused("bad_request", f"tokens: expected 0 to {models.codebook_size - 1}")
    if message.get("fingerprint", models.fingerprint) != models.fingerprint:
        raise Refused(
            "other_codec", f"these are tokens of another codec than this server's ({models.fingerprint[:12]})", 409
        )
    done = await one_job(service, request, lambda number: Decode(number, codes.astype(np.int64)))
    return wav_response(done.result, models.sample_rate_out)


async def continue_file(service: Service, request: Request) -> Response:
    """An audio file in the body, settings in the query -> a WAV file of the decoded prompt and the continuation."""
    settings: dict[str, Any] = {"type": "continue"}
    for name, text in request.query_params.items():
        if name == "type":
            raise Refused("bad_request", "type: is not a setting")
        try:
            settings[name] = json.loads(text)
        except (ValueError, RecursionError):
            raise Refused("bad_request", f"{name}: expected a number") from None
    start = parse_start(settings, service.model.models.sample_rate_in, service.limits)
    samples = await uploaded_audio(service, request)
    pieces: list[bytes] = []

    def hear(number: int, event: Event) -> None:
        if isinstance(event, Ready):
            service.send(Feed(number, samples))
            service.send(EndPrompt(number, time.monotonic()))
        elif isinstance(event, Sound):
            pieces.append(event.pcm)

    done = await one_job(service, request, lambda number: Open(number, start.request._replace(live=False)), hear)
    if done.reason == "no prompt":
        raise Refused("bad_request", f"the prompt is shorter than {service.model.models.chunk_ms:g} ms")
    return wav_response(b"".join(pieces), service.model.models.sample_rate_out)


async def one_job(
    service: Service,
    request: Request,
    command: Callable[[int], Command],
    hear: Callable[[int, Event], None] | None = None,
) -> Done:
    """Send a command with a new stream number and wait for `Done`; `hear(number, event)` receives the events before.

    The command is cancelled when the client disconnects, the server stops, or `BUSY_SECONDS` have passed.
    """
    result: asyncio.Future[Done] = asyncio.get_running_loop().create_future()

    def on_event(event: Event) -> None:
        if not isinstance(event, Done):
            if hear:
                hear(number, event)
        elif not result.done():
            result.set_result(event)

    number = service.open(on_event)
    service.send(command(number))
    left, over = asyncio.ensure_future(departure(request)), asyncio.ensure_future(service.over.wait())
    try:
        await asyncio.wait((result, left, over), timeout=BUSY_SECONDS, return_when="FIRST_COMPLETED")
    finally:
        left.cancel()
        over.cancel()
        service.send(Cancel(number))
        service.forget(number)
    if not result.done():
        if left.done():
            raise Refused("left", "the client disconnected")
        if over.done():
            raise Refused("stopping", "the server is stopping", 503)
        raise Refused("busy", "the server is too busy; try again", 503)
    done = result.result()
    if done.reason == "full":
        raise Refused("busy", "too many requests are waiting; try again", 503)
    return done


async def departure(request: Request) -> None:
    """Wait until the client disconnects, after its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def body_of(service: Service, request: Request) -> bytes:
    """The body of a request. Raises Refused as soon as it is too long."""
    most, body = service.limits.upload_bytes, bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > most:
                raise Refused("too_large", f"a request is {most} bytes at most", 413)
    except ClientDisconnect:
        raise Refused("left", "the client disconnected") from None
    return bytes(body)


async def uploaded_audio(service: Service, request: Request) -> np.ndarray:
    """The audio file in a request's body as float32 [S] at the codec's rate. Raises Refused."""
    body = await body_of(service, request)
    return await run_in_threadpool(audio_of, body, service.model.models.sample_rate_in, service.limits.prompt_seconds)


def audio_of(body: bytes, rate: int, seconds: float) -> np.ndarray:
    """The bytes of an audio file as float32 [S] at `rate` Hz. Raises Refused, also if it is longer than `seconds`."""
    with tempfile.NamedTemporaryFile(prefix="focalstream-") as file:
        file.write(body)
        file.flush()
        try:
            samples = read_audio(file.name, rate, seconds + 0.001)
        except InputError as error:
            raise Refused("bad_audio", str(error).replace(file.name, "the file")) from None
    if len(samples) > round(seconds * rate):
        raise Refused("too_long", f"the file is longer than {seconds:g} s", 413)
    return samples


def wav_response(pcm: bytes, rate: int) -> Response:
    """16-bit mono PCM as a WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", "not compressed"))
        file.writeframes(pcm)
    return Response(buffer.getvalue(), media_type="audio/wav")
