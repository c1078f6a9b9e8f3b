"""A real server process under load: first audio, late chunks, how many clients hold, long sessions, hostile clients.

    python benchmarks/serving.py [--clients 1,2,4,8] [--seconds 10] [--threads 1] [--engine onnx] [--precision int8]
    python benchmarks/serving.py --beside ../before --rounds 3    # another checkout's server, in turns with this one's
    python benchmarks/serving.py --minutes 60    # stream after stream: do memory and latency stay flat?
    python benchmarks/serving.py --hostile 200   # beside one live stream

Clients are in this process, the server in another, on loopback. A client sends its prompt at the pace of speech, 80 ms
at a time, and says `continue`. First audio: from there to the first chunk's arrival. Chunk k is late when it arrives
more than k chunks after the first, that is, when a player without any buffer would run dry; p99 is of the time by which
chunks are later than that (negative: early). A number of clients holds when no more than 1 % of their chunks are late.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import websockets

from slm.serve.client import Client, ServerError, connect
from tokenizer.audio import read_audio
from tokenizer.live import to_pcm

ROOT = Path(__file__).resolve().parents[1]
PROMPT = ROOT / "slm" / "demo" / "speech" / "audio" / "ada-01.ogg"
CHUNK_SECONDS = 0.08


class Run(NamedTuple):
    """One stream as its client saw it."""

    first_audio_ms: float
    lateness_ms: np.ndarray  # of each chunk but the first


async def one(client: Client, prompt: bytes, seconds: float, seed: int) -> Run:
    """A stream: the prompt at the pace of speech, then all that comes."""
    await client.start(seconds=seconds, min_seconds=seconds, seed=seed)
    size = round(CHUNK_SECONDS * client.models["sample_rate_in"]) * 2
    began = time.monotonic()
    for count, at in enumerate(range(0, len(prompt), size), 1):
        await client.send(prompt[at : at + size])
        await asyncio.sleep(max(0.0, began + count * CHUNK_SECONDS - time.monotonic()))
    ended, arrivals = time.monotonic(), []
    async for sound in client.go_on():
        if sound.new:
            arrivals.append(time.monotonic())
    due = arrivals[0] + CHUNK_SECONDS * np.arange(1, len(arrivals))
    return Run(1000 * (arrivals[0] - ended), 1000 * (np.array(arrivals[1:]) - due))


async def many(url: str, clients: int, prompt: bytes, seconds: float) -> list[Run]:
    """So many at once, beginning within a second of each other."""

    async def later(number: int) -> Run:
        await asyncio.sleep(random.Random(number).random())
        async with connect(url) as client:
            return await one(client, prompt, seconds, number)

    return await asyncio.gather(*(later(number) for number in range(clients)))


def row(name: str, runs: list[Run]) -> str:
    """A line of the tables."""
    first = np.percentile([run.first_audio_ms for run in runs], [50, 95])
    lateness = np.concatenate([run.lateness_ms for run in runs])
    share = float((lateness > 0).mean())
    return (
        f"| {name} | {first[0]:.0f} | {first[1]:.0f} | {(lateness > 0).sum()} of {len(lateness)} | "
        f"{np.percentile(lateness, 99):.0f} | {'yes' if share <= 0.01 else 'no'} |"
    )


HEADER = "| {} | first audio p50, ms | p95 | late chunks | lateness p99, ms | holds |\n|---|---|---|---|---|---|"


async def load(url: str, args: argparse.Namespace, prompt: bytes, _: int) -> None:
    """With --beside, both servers run all the time, and each measurement is made of one and at once of the other."""
    print(HEADER.format("clients"))
    with contextlib.ExitStack() as others:
        urls = {"": url}
        if args.beside:
            urls = {" here": url, " beside": others.enter_context(running(args, args.beside))[0]}
        for clients in args.clients:
            runs: dict[str, list[Run]] = {name: [] for name in urls}
            for name in list(urls) * args.rounds:
                runs[name] += await many(urls[name], clients, prompt, args.seconds)
            for name, found in runs.items():
                print(row(f"{clients}{name}", found), flush=True)


async def endure(url: str, args: argparse.Namespace, prompt: bytes, pid: int) -> None:
    """One client, session after session."""
    print("behind each row: resident memory of the server and of its model's process\n" + HEADER.format("minute"))
    began, runs, reported = time.monotonic(), [], 0.0
    async with connect(url) as client:
        while (passed := (time.monotonic() - began) / 60) < args.minutes:
            runs.append(await one(client, prompt, min(60.0, 60 * args.minutes), seed=len(runs)))
            if passed - reported >= args.minutes / 12 or (time.monotonic() - began) / 60 >= args.minutes:
                print(row(f"{(time.monotonic() - began) / 60:.1f}", runs), f"{resident_mib(pid):.0f} MiB", flush=True)
                runs, reported = [], passed


def resident_mib(pid: int) -> float:
    """Of a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in [pid, *children])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def hostility(url: str, args: argparse.Namespace, prompt: bytes, _: int) -> None:
    """One live stream alone, then beside hostile connections, 20 at a time."""
    print(HEADER.format("one live stream"))
    print(row("alone", await many(url, 1, prompt, args.seconds)), flush=True)
    live = asyncio.create_task(many(url, 1, prompt, args.seconds))
    ways = [malformed, oversize, slow_reader, flood, early_close, wrong_token, wrong_origin, half_handshake]
    gate, done = asyncio.Semaphore(20), 0

    async def attack(number: int) -> None:
        nonlocal done
        async with gate:
            with contextlib.suppress(OSError, EOFError, websockets.WebSocketException, ServerError, TimeoutError):
                await asyncio.wait_for(ways[number % len(ways)](url), 20)
            done += 1

    await asyncio.gather(*(attack(number) for number in range(args.hostile)))
    print(row(f"beside {done} hostile ones", await live), flush=True)
    print(row("afterwards", await many(url, 1, prompt, args.seconds)), flush=True)


async def malformed(url: str) -> None:
    async with connect(url) as client:
        await client._socket.send(random.choice(["{", '"', "[" * 30_000, '{"type": 1}', b"\0"]))
        await client.receive()


async def oversize(url: str) -> None:
    async with connect(url) as client:
        await client._socket.send(b"\0" * 1_000_000)
        await client.receive()


async def slow_reader(url: str) -> None:
    async with websockets.connect(url, max_queue=1, compression=None) as socket:
        await socket.send(json.dumps({"type": "hello", "version": 1}))
        await socket.send(json.dumps({"type": "start", "seconds": 60}))
        await asyncio.sleep(5)


async def flood(url: str) -> None:
    async with connect(url) as client:
        for _ in range(5000):
            await client.cancel()


async def early_close(url: str) -> None:
    async with connect(url) as client:
        await client.start(seconds=60)
        await client.send(bytes(32_000))
        await client.tell(type="continue")
        client._socket.transport.abort()


async def wrong_token(url: str) -> None:
    async with websockets.connect(url) as socket:
        await socket.send(json.dumps({"type": "hello", "version": 0, "token": "x" * 60_000}))
        await socket.recv()


async def wrong_origin(url: str) -> None:
    async with connect(url, origin="https://foe.example"):
        pass


async def half_handshake(url: str) -> None:
    host, port = url.split("/")[2].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n" + b"A: b\r\n" * 5000)
    await reader.read(100)
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each continuation")
    parser.add_argument("--prompt-seconds", type=float, default=3.0)
    parser.add_argument("--minutes", type=float, help="a long session instead")
    parser.add_argument("--hostile", type=int, metavar="N", help="N hostile connections instead")
    parser.add_argument("--slots", type=int, help="of the server; left out: as many as the most clients")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--codec", default="small")
    parser.add_argument("--lm", default="small")
    parser.add_argument("--engine", default="onnx")
    parser.add_argument("--precision", default="int8")
    parser.add_argument(
        "--beside", type=Path, metavar="CHECKOUT", help="of the same repository, such as a git worktree"
    )
    parser.add_argument("--rounds", type=int, default=1, help="of each number of clients")
    args = parser.parse_args()
    with running(args, ROOT) as (url, pid):
        prompt = to_pcm(read_audio(PROMPT, 16000, args.prompt_seconds))
        work: Any = endure if args.minutes else hostility if args.hostile else load
        asyncio.run(work(url, args, prompt, pid))


@contextlib.contextmanager
def running(args: argparse.Namespace, checkout: Path) -> Iterator[tuple[str, int]]:
    """A server of a checkout: the address of its streams, and its process."""
    slots = args.slots or (8 if args.hostile else 1 if args.minutes else max(args.clients))
    command = [sys.executable, "-m", "slm.cli", "serve", "--port", "0", "--slots", str(slots)]
    if args.minutes:
        command += ["--session-seconds", str(60 * args.minutes + 600)]
    for name in ("threads", "codec", "lm", "engine", "precision"):
        command += [f"--{name}", str(getattr(args, name))]
    # Python finds the modules of the folder in which `-m` runs before those that are installed.
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=checkout)
    try:
        assert server.stdout is not None
        print(checkout.name, server.stdout.readline().strip(), sep=": ")
        yield server.stdout.readline().strip().replace("http", "ws") + "v1/stream", server.pid
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


if __name__ == "__main__":
    main()
