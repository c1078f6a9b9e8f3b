"""The attacks of `attacks.py`, which runs each in a process of its own: `python attack_ways.py NAME HOST PORT`.

The process prepares, says `ready`, waits for a line, and then attacks until it is killed. It has a low priority: real
attackers are other machines and take none of the server's processor. Attacks are bounded: at most 300 sockets and 32
WebSockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import sys
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import soundfile
import websockets

from slm.serve.client import ServerError, connect

IGNORED = (OSError, EOFError, websockets.WebSocketException, ServerError, asyncio.TimeoutError)
FLAC_RATES = (655350, 192000)  # Hz: refused, and accepted
HELLO = json.dumps({"type": "hello", "version": 1})
NICE = 10


class Target(NamedTuple):
    """Where the server listens."""

    host: str
    port: int

    @property
    def stream(self) -> str:
        return f"ws://{self.host}:{self.port}/v1/stream"


async def nothing(_: Target) -> None:
    await asyncio.Event().wait()


async def starts_on_one(target: Target, sockets: int = 1) -> None:
    """190 pairs of start and cancel at once on a connection, below the rate limit, again and again."""

    async def one() -> None:
        while True:
            async with websockets.connect(target.stream, compression=None, max_queue=None) as socket:
                await socket.send(HELLO)
                for _ in range(190):
                    await socket.send('{"type": "start", "seconds": 60}')
                    await socket.send('{"type": "cancel"}')
                await asyncio.sleep(4)

    await forever(one, sockets)


async def starts_on_many(target: Target) -> None:
    await starts_on_one(target, 32)


async def long_prompts(target: Target) -> None:
    """Prompts as long as they may be, sent at once and abandoned."""

    async def one() -> None:
        while True:
            async with connect(target.stream) as client:
                await asyncio.wait_for(client.start(seconds=60), 5)
                await client.send(bytes(2 * 16000 * 29))
                await client.tell(type="continue")
                await asyncio.sleep(1)

    await forever(one, 8)


async def control_messages(target: Target) -> None:
    """Long messages with unknown fields, below the rate limit."""
    message = json.dumps({"type": "start", **{f"field{n}": n for n in range(4000)}})

    async def one() -> None:
        while True:
            async with websockets.connect(target.stream, compression=None, max_queue=None) as socket:
                await socket.send(HELLO)
                for _ in range(100):
                    await socket.send(message[:65000])
                    await asyncio.sleep(0.01)

    await forever(one, 8)


async def pings(target: Target) -> None:
    """Pings and fragments without end."""

    async def one() -> None:
        while True:
            async with websockets.connect(target.stream, compression=None, max_queue=None) as socket:
                await socket.send(HELLO)
                while True:
                    await socket.ping()

    await forever(one, 8)


@cache
def silent_flac(rate: int, channels: int, seconds: float = 30.0) -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, channels, format="FLAC") as file:
        for _ in range(int(seconds)):
            file.write(np.zeros((rate, channels), np.int16))
    return buffer.getvalue()


async def uploads(target: Target) -> None:
    """30 s of silence at 655,350 Hz with 8 channels, and at 192,000 Hz, which is accepted."""
    bodies = [silent_flac(rate, 8) for rate in FLAC_RATES]
    number = iter(range(1 << 30))

    async def one() -> None:
        while True:
            path = ("/v1/encode", "/v1/continue?seconds=60")[next(number) // 2 % 2]
            await request(target, path, bodies[next(number) // 4 % 2])

    await forever(one, 16)


async def idle_sockets(target: Target) -> None:
    """Sockets that say nothing, half a head, or half a body."""
    half_body = b"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf"
    with contextlib.ExitStack() as opened:
        for number in range(300):
            _, writer = await asyncio.open_connection(*target)
            opened.callback(writer.close)
            writer.write((b"", b"GET / HTTP/1.1\r\nHost:", half_body)[number % 3])
        await asyncio.Event().wait()


async def connections(target: Target) -> None:
    """Sockets that are opened and dropped as fast as it goes."""

    async def one() -> None:
        while True:
            _, writer = await asyncio.open_connection(*target)
            writer.write(b"GET ")
            writer.transport.abort()
            await asyncio.sleep(0.005)

    await forever(one, 8)


async def long_json(target: Target) -> None:
    """7.8 MB of tokens as JSON."""
    body = b'{"tokens": [1234' + b", 1234" * 1_300_000 + b"]}"
    await forever(lambda: request(target, "/v1/decode", body), 4)


async def examples(target: Target) -> None:
    """What the page offers, without a token."""
    await forever(lambda: request(target, "/examples/ada-01.wav"), 16)


async def odd_requests(target: Target) -> None:
    """Paths of 300 letters, hosts that are none, bytes that are no HTTP, text that is no UTF-8, wrong messages."""
    heads = [b"GET /page/" + b"x" * 300 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"\xff" * 4000, b"GET / HTTP/9.9\r\n\r\n"]
    heads.append(b"POST /v1/encode HTTP/1.1\r\nHost: [\r\nOrigin: http://[\r\nContent-Length: 0\r\n\r\n")
    number = iter(range(1 << 30))

    async def one() -> None:
        while True:
            reader, writer = await asyncio.open_connection(*target)
            writer.write(heads[next(number) % len(heads)])
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(reader.read(1000), 0.5)
            writer.close()
            async with websockets.connect(target.stream) as socket:
                await socket.send(b"\xff\xfe", text=True)
                await socket.recv()

    await forever(one, 8)


async def slow_readers(target: Target) -> None:
    """Clients that start streams and never read."""

    async def one() -> None:
        async with websockets.connect(target.stream, max_queue=1, compression=None) as socket:
            await socket.send(HELLO)
            await socket.send('{"type": "start", "seconds": 60}')
            await asyncio.sleep(5)

    await forever(one, 6)


ATTACKS: dict[str, Callable[[Target], Awaitable[None]]] = {
    "nothing": nothing,
    "starts": starts_on_one,
    "starts-32": starts_on_many,
    "prompts": long_prompts,
    "control": control_messages,
    "pings": pings,
    "uploads": uploads,
    "idle": idle_sockets,
    "connections": connections,
    "json": long_json,
    "examples": examples,
    "odd": odd_requests,
    "slow": slow_readers,
}


async def forever(work: Callable[[], Awaitable[Any]], at_once: int) -> None:
    """Do it again and again, `at_once` times beside each other; what the server refuses is no error."""

    async def again() -> None:
        while True:
            with contextlib.suppress(*IGNORED):
                await work()
            await asyncio.sleep(0.001)

    await asyncio.gather(*(again() for _ in range(at_once)))


async def request(target: Target, path: str, body: bytes = b"") -> bytes:
    """The answer's first bytes."""
    reader, writer = await asyncio.open_connection(*target)
    try:
        method = "POST" if body else "GET"
        head = f"{method} {path} HTTP/1.1\r\nHost: {target.host}\r\nConnection: close\r\nContent-Length: {len(body)}"
        writer.write(f"{head}\r\n\r\n".encode() + body)
        await writer.drain()
        return await asyncio.wait_for(reader.read(1000), 30)
    finally:
        writer.close()


def main() -> None:
    name, host, port = sys.argv[1:]
    os.nice(NICE)
    if name == "uploads":
        for rate in FLAC_RATES:
            silent_flac(rate, 8)
    print("ready", flush=True)
    if sys.stdin.readline():
        asyncio.run(ATTACKS[name](Target(host, int(port))))


if __name__ == "__main__":
    main()
