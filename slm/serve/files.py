"""Short files over HTTP: encode, decode and continue. Live streams have priority over them.

In these endpoints `Refused.close` is the HTTP status.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
import wave
from collections.abc import Callable
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from slm.serve.messages import Cancel, Command, Decode, Done, Encode, EndPrompt, Event, Feed, Open, Ready, Sound
from slm.serve.protocol import Refused, parse_start
from slm.serve.service import Service
from slm.serve.uploads import body_of, departure, uploaded_audio

BUSY_SECONDS = 120.0  # timeout of a request
TOKEN_BYTES = 16  # of JSON for a token, at most


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
    longest = int(service.limits.speech_seconds * models.token_rate)
    async with body_of(service, request, TOKEN_BYTES * longest + 1000) as body:  # short enough to parse at once
        text = body
    try:
        message = json.loads(text)
        codes, unknown = np.asarray(message["tokens"]), sorted(set(message) - {"tokens", "fingerprint", "token_rate"})
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Refused("bad_request", 'expected JSON: {"tokens": [...]}') from None
    if unknown:
        raise Refused("bad_request", f"unknown field {unknown[0][:40]!r}; known are fingerprint, token_rate, tokens")
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


def wav_response(pcm: bytes, rate: int) -> Response:
    """16-bit mono PCM as a WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", "not compressed"))
        file.writeframes(pcm)
    return Response(buffer.getvalue(), media_type="audio/wav")
