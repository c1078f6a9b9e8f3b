"""A server under attack, with a live stream beside every attack: does the stream go on, and does the server stay small?

    python benchmarks/attacks.py [--seconds 10] [--only starts,uploads] [--json FILE]

A live stream runs for some seconds alone and then for `--seconds` beside the attack, with a question to /healthz every
0.2 s, all against one `focalstream serve` with the shipped models on loopback. The columns:

- longest gap: the longest time without a chunk of the stream beyond the 80 ms that a chunk plays (its listener has
  `--lead-ms` in hand); alone: the same before the attack, which is what this machine does to a stream anyway;
- /healthz: its slowest answer during the attack;
- memory: the most that the server's processes held, as a multiple of before the first attack;
- server, model: processor time of the two processes, as a share of the attack's time;
- waited: the most that one of the two, within a tenth of a second, was ready to run but had no processor because other
  programs had it. Where that is long, a gap says little about the server.

Afterwards the log is searched for tracebacks. Exit status 1: a gap above 200 ms, memory above 1.2 times, no answer of
/healthz within 1 s, or a traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from attack_ways import ATTACKS, IGNORED, Target, request
from serving import CHUNK_SECONDS, PROMPT, ROOT, resident_mib

from slm.serve.client import connect
from tokenizer.audio import read_audio
from tokenizer.live import to_pcm

GAP_MS, MEMORY_RATIO, HEALTH_SECONDS = 200.0, 1.2, 1.0
ALONE_SECONDS = 3.0  # of a stream before its attack
LOOK_SECONDS = 0.1
HEADER = (
    "| attack | longest gap, ms | alone, ms | /healthz, ms | memory, times | server | model | waited, ms | holds |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


class Result(NamedTuple):
    """What one attack did to the others. Shares are of the attack's duration."""

    attack: str
    gap_ms: float
    alone_ms: float
    health_ms: float
    memory: float
    server_share: float
    model_share: float
    waited_ms: float

    @property
    def holds(self) -> bool:
        return self.gap_ms <= GAP_MS and self.health_ms <= 1000 * HEALTH_SECONDS and self.memory <= MEMORY_RATIO

    def row(self) -> str:
        figures = f"{self.gap_ms:.0f} | {self.alone_ms:.0f} | {self.health_ms:.0f} | {self.memory:.2f}"
        shares = f"{self.server_share:.0%} | {self.model_share:.0%} | {self.waited_ms:.0f}"
        return f"| {self.attack} | {figures} | {shares} | {'yes' if self.holds else 'no'} |"


class Gaps(NamedTuple):
    """The longest time without a chunk, in milliseconds, before and after a moment."""

    before: float
    after: float


async def stream_gaps(target: Target, prompt: bytes, seconds: float, moment: float) -> Gaps:
    """A live stream. `moment`: of `time.monotonic()`, that divides it in two."""
    async with connect(target.stream) as client:
        await client.start(seconds=seconds, min_seconds=seconds)
        await client.send(prompt)
        last, before, after = None, 0.0, 0.0
        async for sound in client.go_on():
            now = time.monotonic()
            if sound.new:
                gap = 1000 * (now - last - CHUNK_SECONDS) if last else 0.0
                before, after = (max(before, gap), after) if now < moment else (before, max(after, gap))
                last = now
        return Gaps(before, after)


async def slowest_health(target: Target) -> float:
    """Seconds of the longest answer, until cancelled; an answer that does not come counts as 60."""
    slowest = 0.0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            began = time.monotonic()
            try:
                answer = await request(target, "/healthz")
                slowest = max(slowest, time.monotonic() - began if b" 200 " in answer else 60.0)
            except IGNORED:
                slowest = 60.0
            await asyncio.sleep(0.2)
    return slowest


class Watched:
    """A server's processes, looked at from outside."""

    def __init__(self, pid: int) -> None:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self.server, self.model = pid, max(map(int, children), key=resident_mib)
        self.before = resident_mib(pid)
        self._waits = self._waited()
        self.most, self.longest_wait = 0.0, 0.0

    def begin(self) -> None:
        self._waits = self._waited()
        self.most, self.longest_wait = 0.0, 0.0

    def look(self) -> None:
        """Memory, and how long the processes waited for a processor since the last look."""
        waits = self._waited()
        self.longest_wait = max(self.longest_wait, *(now - then for now, then in zip(waits, self._waits, strict=True)))
        self._waits = waits
        self.most = max(self.most, resident_mib(self.server) / self.before)

    def seconds(self) -> tuple[float, float]:
        """Processor time of the server and of the model."""
        ticks = os.sysconf("SC_CLK_TCK")
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in (self.server, self.model)]
        server, model = ((int(one[11]) + int(one[12])) / ticks for one in fields)
        return server, model

    def _waited(self) -> list[float]:
        """Milliseconds for which each main thread was ready to run but did not, since it began."""
        texts = (Path(f"/proc/{pid}/schedstat").read_text() for pid in (self.server, self.model))
        return [int(text.split()[1]) / 1e6 for text in texts]


@contextlib.contextmanager
def attacker(name: str, target: Target) -> Iterator[subprocess.Popen[str]]:
    """A process that is ready to attack and begins when it is sent a line."""
    command = [sys.executable, str(Path(__file__).with_name("attack_ways.py")), name, target.host, str(target.port)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n", f"{name}: cannot begin"
        yield process
    finally:
        process.kill()
        process.communicate()


async def one_attack(name: str, target: Target, seconds: float, watched: Watched) -> Result:
    prompt = to_pcm(read_audio(PROMPT, 16000, 2.0))
    with attacker(name, target) as process:
        moment = time.monotonic() + ALONE_SECONDS
        stream = asyncio.create_task(stream_gaps(target, prompt, ALONE_SECONDS + seconds, moment))
        await asyncio.sleep(moment - time.monotonic())
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        health = asyncio.create_task(slowest_health(target))
        watched.begin()
        began, spent = time.monotonic(), watched.seconds()
        while not stream.done():
            await asyncio.sleep(LOOK_SECONDS)
            watched.look()
        passed = time.monotonic() - began
        shares = [(now - then) / passed for now, then in zip(watched.seconds(), spent, strict=True)]
        health.cancel()
        slowest = await health
        assert name == "nothing" or process.poll() is None, f"{name}: the attacker has ended"
    try:
        gaps = stream.result()
    except (*IGNORED, ValueError):
        gaps = Gaps(float("inf"), float("inf"))
    return Result(name, gaps.after, gaps.before, 1000 * slowest, watched.most, *shares, watched.longest_wait)


async def all_attacks(target: Target, args: argparse.Namespace, pid: int) -> list[Result]:
    with contextlib.suppress(*IGNORED):
        await stream_gaps(target, bytes(32000), 1.0, 0.0)
    watched = Watched(pid)
    print(f"server and model: {watched.before:.0f} MiB before\n\n{HEADER}")
    results = []
    for name in args.only:
        results.append(await one_attack(name, target, args.seconds, watched))
        print(results[-1].row(), flush=True)
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
    held = sum(result.holds for result in results)
    print(f"\n{held} of {len(results)} hold; {tracebacks} tracebacks in {len(lines)} lines of the log")
    for result in results:
        if result.gap_ms > GAP_MS < result.alone_ms:
            print(f"{result.attack}: the stream had such a gap before the attack too; run it on a quieter machine")
    if args.json:
        found = {"tracebacks": tracebacks, "lines": len(lines), "attacks": [result._asdict() for result in results]}
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if not tracebacks and held == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
