"""Contenders for one lock, round after round: is there ever more than one holder, does any die, does any starve?

    python benchmarks/leases.py local --rounds 1000
    python benchmarks/leases.py moto --milliseconds 0 30 300 --rounds 5
    python benchmarks/leases.py s3 --url s3://BUCKET/FOLDER --rounds 10      # AWS_ENDPOINT_URL and so on as usual

In each round `--contenders` (in `--processes` processes) start together behind the file of a run that died, each takes
the lock once, and holds it for a moment. Holders are counted outside of the store: each keeps a file of this machine
open that only one process may have. One line of JSON per latency: rounds, turns taken and expected, the most holders
at once, errors, and seconds from the first to the last turn of a round (the last one's wait).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

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


def contend(
    path: Folder, contenders: int, crowd: Crowd, start: Any, found: Any, timing: dict[str, float], delay: float
) -> None:
    """One process: so many threads that take the lock once each. Every request waits `delay` s first."""
    for name, seconds in timing.items():
        setattr(leases, name, seconds)
    request = RemotePath._request

    def late(path: RemotePath, *arguments: Any, **options: Any) -> Any:
        time.sleep(delay)
        return request(path, *arguments, **options)

    RemotePath._request = late  # type: ignore

    def once() -> None:
        start.wait()
        try:
            with held(path, wait=True) as still_held:
                alone = crowd.enter()
                time.sleep(0.001)
                still_held()
                crowd.leave()
            found.put((alone, time.monotonic(), ""))
        except BaseException as error:
            found.put((True, time.monotonic(), f"{type(error).__name__}: {error}"))

    threads = [threading.Thread(target=once) for _ in range(contenders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def rounds(
    root: Folder, number: int, contenders: int, processes: int, timing: dict[str, float], delay: float
) -> dict[str, Any]:
    """Play so many rounds below `root`, each with a lock of its own."""
    context: Any = multiprocessing.get_context("spawn" if isinstance(root, RemotePath) else "fork")
    turns = twice = 0
    errors: list[str] = []
    spans: list[float] = []
    for _ in range(number):
        path = root / uuid.uuid4().hex / "plan.lock"
        if isinstance(path, RemotePath):
            path.write_bytes(DEAD)
        else:
            path.parent.mkdir(parents=True)
            path.touch()
        with tempfile.TemporaryDirectory() as folder:
            start, found = context.Barrier(contenders), context.Queue()
            share = contenders // processes
            options = (path, share, Crowd(folder), start, found, timing, delay)
            workers = [context.Process(target=contend, args=options) for _ in range(processes)]
            for worker in workers:
                worker.start()
            results = [found.get(timeout=3600) for _ in range(share * processes)]
            for worker in workers:
                worker.join()
        errors += [error for _, _, error in results if error]
        turns += sum(not error for _, _, error in results)
        twice += sum(not alone for alone, _, _ in results)
        ends = [end for _, end, _ in results]
        spans.append(max(ends) - min(ends))
    return {
        "rounds": number,
        "contenders": contenders,
        "turns": turns,
        "expected": number * contenders,
        "two_at_once": twice,
        "errors": errors[:3],
        "longest_round_s": round(max(spans), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", choices=("local", "moto", "s3"))
    parser.add_argument("--url", help="an empty folder of a bucket, for s3")
    parser.add_argument("--contenders", type=int, default=64)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--rounds", type=int, nargs="+", default=[10], help="one number, or one per latency")
    parser.add_argument("--milliseconds", type=float, nargs="+", default=[0.0], help="added to each request")
    parser.add_argument("--look", type=float, default=1.0, help="LOOK_SECONDS of the leases")
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
                root, delay = RemotePath(args.url), milliseconds / 1000
            found = rounds(root, number, args.contenders, args.processes, timing, delay)
            print(json.dumps({"store": args.store, "milliseconds": milliseconds, **found}), flush=True)


if __name__ == "__main__":
    main()
