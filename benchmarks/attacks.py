"""A server under attack, with a live stream beside every attack: does the stream go on, and does the server stay small?

    python benchmarks/attacks.py [--seconds 10] [--only starts,uploads] [--json FILE] [--markdown]

Each attack lasts `--seconds`, against one `focalstream serve` with the shipped models on loopback. Beside it run a live
stream and a question to /healthz every 0.2 s. Columns: the longest time without a chunk of the stream (its listener has
`--lead-ms` in hand), the longest answer of /healthz, and resident memory of the server's processes against that before
the first attack. Afterwards the log is searched for tracebacks. Attackers are bounded: at most 300 sockets and 32
WebSockets, and they end with the attack. Exit status 1: a gap above 200 ms, memory above 1.2 times, no answer of
/healthz within 1 s, or a traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import websockets
from serving import CHUNK_SECONDS, PROMPT, ROOT, resident_mib

from slm.serve.client import ServerError, connect
from tokenizer.audio import read_audio
from tokenizer.live import to_pcm

GAP_MS, MEMORY_RATIO, HEALTH_SECONDS = 200.0, 1.2, 1.0
IGNORED = (OSError, EOFError, websockets.WebSocketException, ServerError, asyncio.TimeoutError)
FLAC_RATES = (655350, 192000)  # Hz: refused, and accepted
HELLO = json.dumps({"type": "hello", "version": 1})


class Target(NamedTuple):
    """Where the server listens."""

    host: str
    port: int

    @property
    def stream(self) -> str:
        return f"ws://{self.host}:{self.port}/v1/stream"


class Result(NamedTuple):
    """What one attack did to the others."""

    attack: str
    gap_ms: float
    health_ms: float
    memory: float

    @property
    def holds(self) -> bool:
        return self.gap_ms <= GAP_MS and self.health_ms <= 1000 * HEALTH_SECONDS and self.memory <= MEMORY_RATIO


# ---- attacks: each runs until it is cancelled -----------------------------------------------------------------------


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


@cache  # made before the attack
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


# ---- beside them ----------------------------------------------------------------------------------------------------


async def longest_gap(target: Target, prompt: bytes, seconds: float) -> float:
    """A live stream; the longest time without a chunk beyond the time for which a chunk plays, in milliseconds."""
    async with connect(target.stream) as client:
        await client.start(seconds=seconds, min_seconds=seconds)
        await client.send(prompt)
        last, longest = None, 0.0
        async for sound in client.go_on():
            now = time.monotonic()
            if sound.new:
                longest = max(longest, now - last - CHUNK_SECONDS if last else 0.0)
                last = now
        return 1000 * longest


async def slowest_health(target: Target) -> list[float]:
    """Seconds of each answer, until cancelled; an answer that does not come counts as 60."""
    times: list[float] = []
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            began = time.monotonic()
            try:
                answer = await request(target, "/healthz")
                times.append(time.monotonic() - began if b" 200 " in answer else 60.0)
            except IGNORED:
                times.append(60.0)
            await asyncio.sleep(0.2)
    return times


async def one_attack(name: str, target: Target, args: argparse.Namespace, pid: int, before: float) -> Result:
    prompt = to_pcm(read_audio(PROMPT, 16000, 2.0))
    health = asyncio.create_task(slowest_health(target))
    stream = asyncio.create_task(longest_gap(target, prompt, args.seconds + 1))
    await asyncio.sleep(1.0)
    attack = asyncio.create_task(ATTACKS[name](target))
    most = 0.0
    while not stream.done():
        await asyncio.sleep(0.1)
        most = max(most, resident_mib(pid))
    attack.cancel()
    health.cancel()
    await asyncio.gather(attack, return_exceptions=True)
    try:
        gap = stream.result()
    except (*IGNORED, ValueError):
        gap = float("inf")
    return Result(name, gap, 1000 * max(await health), most / before)


async def all_attacks(target: Target, args: argparse.Namespace, pid: int) -> list[Result]:
    results = []
    with contextlib.suppress(*IGNORED):
        await longest_gap(target, bytes(32000), 1.0)
    for rate in FLAC_RATES:
        silent_flac(rate, 8)
    before = resident_mib(pid)
    print(f"server and model: {before:.0f} MiB before\n")
    print("| attack | longest gap, ms | slowest /healthz, ms | memory, times | holds |\n|---|---|---|---|---|")
    for name in args.only:
        result = await one_attack(name, target, args, pid, before)
        figures = f"{result.gap_ms:.0f} | {result.health_ms:.0f} | {result.memory:.2f}"
        print(f"| {name} | {figures} | {'yes' if result.holds else 'no'} |", flush=True)
        results.append(result)
        await asyncio.sleep(2.0)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each attack")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(ATTACKS), help="names, by commas")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--engine", default="onnx")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args()
    if unknown := set(args.only) - set(ATTACKS):
        parser.error(f"unknown attacks {sorted(unknown)}; known are {', '.join(ATTACKS)}")
    command = [sys.executable, "-m", "slm.cli", "serve", "--port", "0", "--slots", str(args.slots)]
    command += ["--engine", args.engine, "--precision", args.precision]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
        try:
            assert server.stdout is not None
            print(server.stdout.readline().strip())
            host, port = server.stdout.readline().strip().split("/")[2].split(":")
            results = asyncio.run(all_attacks(Target(host, int(port)), args, server.pid))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
        log.seek(0)
        lines = log.read().splitlines()
    tracebacks = sum("Traceback" in line for line in lines)
    print(f"\n{tracebacks} tracebacks in {len(lines)} lines of the log")
    if args.json:
        found = {"tracebacks": tracebacks, "lines": len(lines), "attacks": [result._asdict() for result in results]}
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if not tracebacks and all(result.holds for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
