"""Uploaded bodies and audio files, bounded before they are read.

A compressed file of 170 kB can hold a gigabyte of samples, so its rate and channels are checked first, it is decoded in
short blocks, each reduced to mono at once, and decoding stops where the file is too long.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import anyio
import numpy as np
from starlette.requests import ClientDisconnect, Request

from slm.serve.protocol import RATES, Refused
from slm.serve.service import Service
from tokenizer.audio import read_sound
from tokenizer.audio_input.byte_source import FileBytes
from tokenizer.audio_input.reader import AudioReader
from tokenizer.errors import InputError

BLOCK_SECONDS = 0.25  # decoded at once
CHANNELS = 16  # of a file, at most
RATE = (RATES[0] // 2, 2 * RATES[1])  # Hz of a file, lowest and highest
HELD_BODIES = 4  # of the longest, that all requests together hold in memory
DECODER = ThreadPoolExecutor(1, "decoder")


@asynccontextmanager
async def body_of(service: Service, request: Request, most: int) -> AsyncIterator[bytes]:
    """The body of a request, of up to `most` bytes. Its bytes count as held by the service until the block ends.

    The rest of a longer body, up to `upload_bytes`, is read and dropped, because many clients read no answer before
    they have sent everything.

    Raises:
        Refused: the body is longer than `most` or takes too long, or other requests hold `HELD_BODIES` bodies.
    """
    body, size = bytearray(), 0
    longest, seconds = max(most, service.limits.upload_bytes), service.limits.upload_seconds
    try:
        with anyio.fail_after(seconds):
            async for piece in request.stream():
                size += len(piece)
                if size > longest:
                    raise too_large(most)
                if size > most:
                    continue
                body += piece
                service.held_bytes += len(piece)
                if service.held_bytes > HELD_BODIES * service.limits.upload_bytes:
                    raise Refused("busy", "too many files are being sent; try again in a moment", 503)
        if size > most:
            raise too_large(most)
        yield bytes(body)
    except ClientDisconnect:
        raise Refused("left", "the client disconnected") from None
    except TimeoutError:
        raise Refused("too_slow", f"the request's body took more than {seconds:g} s", 408) from None
    finally:
        service.held_bytes -= len(body)


def too_large(most: int) -> Refused:
    return Refused("too_large", f"this request may have {most} bytes at most", 413)


async def uploaded_audio(service: Service, request: Request) -> np.ndarray:
    """The audio file in a request's body as float32 [S] at the codec's rate. Raises Refused."""
    rate, seconds = service.model.models.sample_rate_in, service.limits.prompt_seconds
    async with body_of(service, request, service.limits.upload_bytes) as body:
        decoded = asyncio.get_running_loop().run_in_executor(DECODER, audio_of, body, rate, seconds)
        left = asyncio.ensure_future(departure(request))
        try:
            await asyncio.wait((decoded, left), return_when="FIRST_COMPLETED")
        finally:
            left.cancel()
            decoded.cancel()  # if it still waits for the thread: nobody wants it any more
        if not decoded.done() or decoded.cancelled():
            raise Refused("left", "the client disconnected")
        return decoded.result()


async def departure(request: Request) -> None:
    """Wait until the client disconnects, after its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def audio_of(body: bytes, rate: int, seconds: float) -> np.ndarray:
    """The bytes of an audio file as float32 [S] at `rate` Hz. Raises Refused, also if it is longer than `seconds`."""

    def accept(reader: AudioReader) -> None:
        if not RATE[0] <= reader.sample_rate <= RATE[1]:
            raise InputError(f"the file: has {reader.sample_rate} Hz; expected {RATE[0]} to {RATE[1]}; resample it")
        if reader.channels > CHANNELS:
            raise InputError(f"the file: has {reader.channels} channels; expected {CHANNELS} at most; mix them down")
        if (reader.announced or 0) > (seconds + 0.001) * reader.sample_rate:
            raise too_long(seconds)

    source = FileBytes(io.BytesIO(body), len(body))
    try:
        samples = read_sound(source, "the file", rate, seconds + 0.001, BLOCK_SECONDS, accept)
    except InputError as error:
        raise Refused("bad_audio", str(error)) from None
    if len(samples) > round(seconds * rate):
        raise too_long(seconds)
    return samples


def too_long(seconds: float) -> Refused:
    return Refused("too_long", f"the file is longer than {seconds:g} s", 413)
