"""Audio into the rows of batches, by readers that work side by side, each on one job after the other.

Here readers are threads; `decoders` has processes. A job is sent to whichever reader is free, but the windows of a long
recording all go to the same one, which keeps it open.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from pipelines.format.ledger import Quarantined, quarantine
from pipelines.sources import audio
from pipelines.sources.cuts import CutError, PlannedCut

ATTEMPTS = 2  # a cut that fails is tried once more
REMEMBERED = 1000  # long cuts that failed
JOB_SECONDS = 30.0  # of audio that a reader takes at once
FADING = 0.9  # of the times of earlier jobs, with each that is done


class Request(NamedTuple):
    """A row to fill with `wanted` samples of a cut from sample `begin` on, and silence after them.

    Attributes:
        key: of the cut, different from those of all others.
        samples: of the whole cut, at the codec's rate.
    """

    row: int
    key: Hashable
    cut: PlannedCut
    samples: int
    begin: int
    wanted: int


class Job(Protocol):
    """Work for a reader, which may be in another process. Its result is that of `run`."""

    def run(self, reader: RowReader, buffers: Sequence[np.ndarray]) -> Any: ...

    def after_death(self, ask: Callable[[Job], Any]) -> Any:
        """The result where the reader died of the job. `ask` tries a job in a new one; it raises `ReaderDied`."""
        ...


class ReaderDied(Exception):
    """The process of a reader has ended; the message says how, in words."""


@dataclass(frozen=True)
class ReadRows:
    """Fill rows of a buffer. The result: of each request, why the cut cannot be read, or None.

    Attributes:
        buffer: which one of those that readers know.
        shape: [B, S] of the batch at its beginning.
    """

    buffer: int
    shape: tuple[int, int]
    requests: tuple[Request, ...]
    sample_rate: int

    def run(self, reader: RowReader, buffers: Sequence[np.ndarray]) -> list[Quarantined | None]:
        rows, width = self.shape
        wave = buffers[self.buffer][: rows * width].reshape(self.shape)
        return [reader.read(wave[request.row], request, self.sample_rate) for request in self.requests]

    def after_death(self, ask: Callable[[Job], Any]) -> list[Quarantined | None]:
        return [self._alone(request, ask) for request in self.requests]

    def _alone(self, request: Request, ask: Callable[[Job], Any]) -> Quarantined | None:
        for _ in range(ATTEMPTS):
            try:
                return ask(replace(self, requests=(request,)))[0]
            except ReaderDied as died:
                ending = str(died)
        return quarantine(request.cut, CutError("killed its worker", ending), ATTEMPTS)


class RowReader:
    """Reads cuts into rows. Long ones stay open between their windows."""

    def __init__(self) -> None:
        self._open: dict[Hashable, _Stream] = {}
        self._failed: dict[Hashable, Quarantined] = {}  # whose further windows may be under way

    def read(self, row: np.ndarray, request: Request, sample_rate: int) -> Quarantined | None:
        """Fill a row, float32 [S]; with silence where the cut cannot be read."""
        if request.begin and request.key in self._failed:
            row[:] = 0
            return self._failed[request.key]
        stream = self._open.pop(request.key, None)
        failures = 0 if stream is None else stream.failures
        while failures < ATTEMPTS:
            try:
                if stream is None or stream.position != request.begin:
                    stream = _Stream(request, sample_rate)
                    stream.failures = failures
                stream.fill(row[: request.wanted])
                row[request.wanted :] = 0
                if request.begin + request.wanted < request.samples:
                    self._open[request.key] = stream
                else:
                    stream.end()
                return None
            except MemoryError:
                raise
            except Exception as error:
                failures, stream = failures + 1, None
                failure = quarantine(request.cut, error, failures)
        row[:] = 0
        if request.wanted < request.samples:
            self._failed[request.key] = failure
            while len(self._failed) > REMEMBERED:
                del self._failed[next(iter(self._failed))]
        return failure


class _Stream:
    """A cut that is being read, at `position` samples."""

    def __init__(self, request: Request, sample_rate: int) -> None:
        self._blocks: Iterator[np.ndarray] = audio.read_resampled(request.cut, request.samples, sample_rate)
        self._held = np.zeros(0, np.float32)
        self.position, self.failures = 0, 0
        while self.position < request.begin:  # it failed before, and is read again
            self.fill(np.empty(min(sample_rate, request.begin - self.position), np.float32))

    def fill(self, row: np.ndarray) -> None:
        """The next samples, as many as the row has."""
        done = 0
        while done < len(row):
            if not len(self._held):
                self._held = next(self._blocks)
            taken = self._held[: len(row) - done]
            row[done : done + len(taken)] = taken
            self._held = self._held[len(taken) :]
            done += len(taken)
        self.position += done

    def end(self) -> None:
        """Read to the end of the file, where it is compared with its checksum."""
        for _ in self._blocks:
            pass


class Lane(Protocol):
    """A reader and its place: does one job at a time."""

    def do(self, job: Job) -> Any: ...

    def close(self) -> None: ...


class ThreadLane:
    """A reader in the thread that calls."""

    def __init__(self, buffers: Sequence[np.ndarray]) -> None:
        self._reader, self._buffers = RowReader(), buffers

    def do(self, job: Job) -> Any:
        return job.run(self._reader, self._buffers)

    def close(self) -> None:
        """Nothing is held."""


class Readers:
    """Lanes, each with a thread that gives it jobs.

    Args:
        lanes: made in the thread of each, so that starting processes does not wait for one another.
        at_first: so many of them run from the beginning. Others are added while jobs are left over and each takes so
            much longer than its processor time that one core has time for more.
        job_seconds: of audio that one job should have.

    Attributes:
        count: of those that run from the beginning, which jobs may be meant for.
    """

    def __init__(
        self, lanes: Sequence[Callable[[], Lane]], at_first: int | None = None, job_seconds: float = JOB_SECONDS
    ) -> None:
        self.count = at_first or len(lanes)
        self.job_seconds = job_seconds
        self._spare = deque(lanes[self.count :])
        self._waited, self._computed = 0.0, 0.0  # seconds of the latest jobs, of the clock and of a core
        self._shared: deque[tuple[Job, Future[Any]]] = deque()
        self._own: list[deque[tuple[Job, Future[Any]]]] = [deque() for _ in lanes]
        self._changed = threading.Condition()
        self._closed = False
        self._lanes: list[Lane] = []
        self._threads: list[threading.Thread] = []
        for make in lanes[: self.count]:
            self._start(make)

    @property
    def running(self) -> int:
        """Lanes that there are by now."""
        return len(self._threads)

    def _start(self, make: Callable[[], Lane]) -> None:
        number = len(self._threads)
        self._threads.append(
            threading.Thread(target=self._work, args=(number, make), name=f"reader-{number}", daemon=True)
        )
        self._threads[-1].start()

    def submit(self, job: Job, lane: int | None = None) -> Future[Any]:
        """Have a job done, by a certain lane or by any."""
        future: Future[Any] = Future()
        with self._changed:
            (self._shared if lane is None else self._own[lane % self.count]).append((job, future))
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """Drop what has not begun, and wait for what has."""
        with self._changed:
            self._closed = True
            dropped = [future for queue in (self._shared, *self._own) for _, future in queue]
            for queue in (self._shared, *self._own):
                queue.clear()
            self._changed.notify_all()
            for lane in self._lanes:
                lane.close()
        for future in dropped:
            future.cancel()
        for thread in self._threads:
            thread.join()

    def _work(self, number: int, make: Callable[[], Lane]) -> None:
        lane: Lane | None = None
        while (next_one := self._next(number)) is not None:
            job, future = next_one
            try:
                if lane is None:
                    lane = make()
                    with self._changed:
                        self._lanes.append(lane)
                        if self._closed:
                            lane.close()
                begun, computed = time.perf_counter(), time.thread_time()
                result = lane.do(job)
                self._took(time.perf_counter() - begun, time.thread_time() - computed)
                future.set_result(result)
            except BaseException as error:
                future.set_exception(CancelledError() if self._closed else error)

    def _took(self, waited: float, computed: float) -> None:
        with self._changed:
            self._waited = FADING * self._waited + waited
            self._computed = FADING * self._computed + computed
            if self._spare and self._shared and not self._closed and self._waited > len(self._threads) * self._computed:
                self._start(self._spare.popleft())

    def _next(self, number: int) -> tuple[Job, Future[Any]] | None:
        with self._changed:
            while True:
                if self._own[number]:
                    return self._own[number].popleft()
                if self._shared:
                    return self._shared.popleft()
                if self._closed:
                    return None
                self._changed.wait()
