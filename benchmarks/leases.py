"""Contenders for one lock, round after round: is there ever more than one holder, does any die, does any starve?

    python benchmarks/leases.py local --rounds 1000
    python benchmarks/leases.py moto --milliseconds 0 30 300 --rounds 5
    python benchmarks/leases.py ceph --milliseconds 0 30 300 --rounds 5      # a radosgw that it starts, as ceph.py does
    python benchmarks/leases.py s3 --url s3://BUCKET/FOLDER --rounds 10      # AWS_ENDPOINT_URL and so on as usual

In each round `--contenders` (in `--processes` processes) start together behind the file of a run that died, each takes
the lock once, and holds it for a moment. Holders are counted outside of the store: each keeps a file of this machine
open that only one process may have. One line of JSON per latency: rounds, turns taken and expected, the most holders
at once, those that died, requests of all over the number of turns, and the longest wait from the start of a round.
With `--minutes` no round begins later than that. Waits include `--silence`, which the dead run's file is watched for.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.ceph import BUCKET, gateway
from pipelines.storage import leases
from pipelines.storage.folders import Folder, RemotePath
from pipelines.storage.locks import held
from tests.pipelines.storage.slow_s3 import slow_s3

DEAD = json.dumps({"host": "gone", "process": 1, "lease": "dead", "beat": 7}).encode()


class Crowd:
    """Who holds the lock now, by files of this machine that no two holders can make."""

    def __init__(self, folder: str) -> None:
        self.file = os.path.join(folder, "holder")

    def enter(self) -> bool:
        """Whether this is the only holder."""
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.file, os.O_CREAT | os.O_EXCL))
            return True
        return False

    def leave(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.file)


class Shared(NamedTuple):
    """What all processes share."""

    start: Any  # a barrier before each round
    found: Any  # a queue of turns: whether its holder was alone, seconds waited, what it died of
    requests: Any  # how many so far


def contend(run: Folder, contenders: int, crowd: Crowd, shared: Shared, timing: dict[str, float], delay: float) -> None:
    """One process: so many threads that take the lock of each round once. Every request waits `delay` s first."""
    for name, seconds in timing.items():
        setattr(leases, name, seconds)
    request = RemotePath._request

    def late(path: RemotePath, *arguments: Any, **options: Any) -> Any:
        with shared.requests.get_lock():
            shared.requests.value += 1
        time.sleep(delay)
        return request(path, *arguments, **options)

    RemotePath._request = late  # type: ignore

    def take_turns() -> None:
        for number in itertools.count():
            try:
                shared.start.wait()
            except threading.BrokenBarrierError:  # no more rounds
                return
            began, error, alone = time.monotonic(), "", True
            waited = None
            try:
                with held(lock_of(run, number), wait=True) as still_held:
                    waited = time.monotonic() - began
                    alone = crowd.enter()
                    time.sleep(0.001)
                    still_held()
                    crowd.leave()
            except BaseException as died:
                error = f"{type(died).__name__}: {died}"
            shared.found.put((alone, waited, error))

    threads = [threading.Thread(target=take_turns) for _ in range(contenders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def lock_of(run: Folder, number: int) -> Folder:
    return run / str(number) / "plan.lock"


def rounds(
    root: Folder,
    number: int,
    contenders: int,
    processes: int,
    timing: dict[str, float],
    delay: float,
    seconds: float,
) -> dict[str, Any]:
    """Play so many rounds below `root`, each with a lock of its own, or as many as begin within `seconds`."""
    context: Any = multiprocessing.get_context("spawn" if isinstance(root, RemotePath) else "fork")
    shared = Shared(context.Barrier(contenders + 1), context.Queue(), context.Value("q"))
    run, end = root / uuid.uuid4().hex, time.monotonic() + seconds
    spans: list[float] = []
    results: list[tuple[bool, float | None, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        options = (run, contenders // processes, Crowd(folder), shared, timing, delay)
        workers = [context.Process(target=contend, args=options) for _ in range(processes)]
        for worker in workers:
            worker.start()
        for played in range(number):
            if time.monotonic() > end:
                break
            path = lock_of(run, played)
            if isinstance(path, RemotePath):
                path.write_bytes(DEAD)
            else:
                path.parent.mkdir(parents=True)
                path.touch()
            shared.start.wait()
            results += [shared.found.get(timeout=3600) for _ in range(contenders)]
            spans.append(max(waited or 0.0 for _, waited, _ in results[-contenders:]))
        shared.start.abort()
        for worker in workers:
            worker.join()
    errors = [error for _, _, error in results if error]
    return {
        "rounds": len(spans),
        "contenders": contenders,
        "turns": len(results) - len(errors),
        "expected": len(spans) * contenders,
        "two_at_once": sum(not alone for alone, _, _ in results),
        "died": len(errors),
        "errors": errors[:3],
        "requests_a_turn": round(shared.requests.value / max(len(results), 1), 1),
        "median_longest_wait_s": round(statistics.median(spans), 2),
        "longest_wait_s": round(max(spans), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", choices=("local", "moto", "ceph", "s3"))
    parser.add_argument("--url", help="an empty folder of a bucket, for s3")
    parser.add_argument("--contenders", type=int, default=64)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--rounds", type=int, nargs="+", default=[10], help="one number, or one per latency")
    parser.add_argument("--milliseconds", type=float, nargs="+", default=[0.0], help="added to each request")
    parser.add_argument("--minutes", type=float, default=1e6, help="for each latency")
    parser.add_argument("--look", type=float, default=leases.LOOK_SECONDS, help="LOOK_SECONDS of the leases")
    parser.add_argument("--silence", type=float, default=10.0, help="SILENCE_SECONDS; a quarter of it is BEAT_SECONDS")
    args = parser.parse_args()
    timing = {"LOOK_SECONDS": args.look, "SILENCE_SECONDS": args.silence, "BEAT_SECONDS": args.silence / 4}
    numbers = args.rounds * len(args.milliseconds) if len(args.rounds) == 1 else args.rounds
    for milliseconds, number in zip(args.milliseconds, numbers, strict=True):
        with contextlib.ExitStack() as stack:
            root: Folder
            delay = 0.0
            if args.store == "local":
                root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            elif args.store == "moto":
                stack.enter_context(slow_s3(milliseconds / 1000))
                root = RemotePath("s3://speech/leases")
            else:
                if args.store == "ceph":
                    stack.enter_context(gateway(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
                root, delay = RemotePath(args.url or f"s3://{BUCKET}/leases"), milliseconds / 1000
            found = rounds(root, number, args.contenders, args.processes, timing, delay, 60 * args.minutes)
            print(json.dumps({"store": args.store, "milliseconds": milliseconds, **found}), flush=True)


if __name__ == "__main__":
    main()
