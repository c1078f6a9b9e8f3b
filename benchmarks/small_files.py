"""Small files a second from a store that answers late, by the number of threads that read.

    python benchmarks/small_files.py [--files 400] [--milliseconds 30,300]

The store is in memory, and each request sleeps first, so what counts is how many requests wait at the same time.
"""

from __future__ import annotations

import argparse
import io
import time
from collections import Counter
from typing import Any

import fsspec
import numpy as np
import soundfile
from fsspec.implementations.memory import MemoryFileSystem

from pipelines.bulk.encoding import MOST_READERS, REMOTE_READERS
from pipelines.bulk.feed.reading import JOB_SECONDS, Readers, ReadRows, Request, ThreadLane
from pipelines.sources.audio import expected_samples
from pipelines.sources.cuts import PlannedCut
from pipelines.sources.manifests import read_cuts
from pipelines.storage import ranges

SECONDS, RATE = 2.0, 16000
calls: Counter[str] = Counter()
latency = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1600)
    parser.add_argument("--milliseconds", default="30,300", help="that each request takes longer")
    args = parser.parse_args()
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).normal(0, 0.1, round(SECONDS * RATE)), RATE, format="FLAC")
    fsspec.filesystem("memory").pipe({f"/small/{i:05}.flac": file.getvalue() for i in range(args.files)})
    slow_down()
    print("| latency | readers | at the end | files/s | requests a file | processor time a file |")
    print("|---|---|---|---|---|---|")
    for milliseconds in map(float, args.milliseconds.split(",")):
        global latency
        latency = 0.0
        cuts = [PlannedCut.of(item, item.id) for item in read_cuts(["memory://small"])]
        latency = milliseconds / 1000
        for name, at_first, most in (
            ("1", 1, 1),
            ("2", 2, 2),
            (str(REMOTE_READERS), REMOTE_READERS, REMOTE_READERS),
            (f"{REMOTE_READERS} at first", REMOTE_READERS, MOST_READERS),
            (str(MOST_READERS), MOST_READERS, MOST_READERS),
        ):
            few = cuts[: max(20, round(len(cuts) * min(1, most / REMOTE_READERS)))]
            ranges._heads.clear()
            calls.clear()
            begun, computed = time.perf_counter(), time.process_time()
            lanes = read_all(few, at_first, most)
            speed = len(few) / (time.perf_counter() - begun)
            asked, each = calls.total() / len(few), 1000 * (time.process_time() - computed) / len(few)
            print(f"| {milliseconds:g} ms | {name} | {lanes} | {speed:.0f} | {asked:.2f} | {each:.1f} ms |", flush=True)


def read_all(cuts: list[PlannedCut], at_first: int, most: int) -> int:
    """Read cuts as a run does. Returns the readers at the end."""
    buffer = np.zeros(len(cuts) * round(SECONDS * RATE), np.float32)
    readers = Readers([lambda: ThreadLane([buffer])] * most, at_first, JOB_SECONDS * at_first / most)
    each = max(1, round(readers.job_seconds / SECONDS))
    shape = (len(cuts), round(SECONDS * RATE))
    requests = [
        Request(row, row, cut, expected_samples(cut.cut, cut.seconds, RATE), 0, shape[1])
        for row, cut in enumerate(cuts)
    ]
    asked = []
    for begin in range(0, len(cuts), each):
        asked.append(readers.submit(ReadRows(0, shape, tuple(requests[begin : begin + each]), RATE)))
        if len(asked) > 2 * most:  # as far ahead as the buffers of a run reach
            asked.pop(0).result()
    assert not any(failed for future in asked for failed in future.result())
    readers.close()
    return readers.running


def slow_down() -> None:
    for name in ("cat_file", "info", "_open"):
        method = getattr(MemoryFileSystem, name)

        def slow(self: Any, *args: Any, method: Any = method, name: str = name, **options: Any) -> Any:
            if latency:
                calls[name] += 1
                time.sleep(latency)
            return method(self, *args, **options)

        setattr(MemoryFileSystem, name, slow)


if __name__ == "__main__":
    main()
