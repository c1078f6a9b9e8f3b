"""Groups of cuts to tokens: reading ahead, encoding and finishing happen side by side, also across groups.

    feeder thread       takes the next group, lays it out, and asks readers to fill the rows of each step
    readers             threads or processes (`reading`, `decoders`)
    the calling thread  gives each step to the device, in order, and nothing else
    collector thread    waits for tokens, sorts them into the cuts, and finishes groups

Memory is bounded by the number of buffers: the feeder waits for one before each step.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.bulk.feed.batches import BatchRules, Piece, Step, steps
from pipelines.bulk.feed.buffers import Buffers, Closed
from pipelines.bulk.feed.device import Device
from pipelines.bulk.feed.reading import ATTEMPTS, Readers, ReadRows, Request
from pipelines.format.ledger import Outcome, Quarantined, quarantine
from pipelines.sources.cuts import CutError, PlannedCut

if TYPE_CHECKING:
    from tokenizer import Codec

log = logging.getLogger(__name__)

MOST_FINISHING = 64  # shards that wait to be written

Report = Callable[[Any], None]


@dataclass
class Group:
    """Cuts that are laid out together.

    Attributes:
        samples: of each cut, at the codec's rate.
        outcomes: those that are known, by position; at the end, of every cut in `wanted` too.
        wanted: positions of the cuts to encode. The rows of the others are silent.
        finish: called when all wanted cuts have outcomes, in the collector thread; the results of what it returns are
            reported.
    """

    cuts: list[PlannedCut]
    samples: list[int]
    outcomes: dict[int, Outcome]
    wanted: frozenset[int]
    finish: Callable[[Group], list[Future[Any]]]
    parts: dict[int, list[np.ndarray]] = field(default_factory=dict)

    def failed(self, i: int) -> bool:
        return isinstance(self.outcomes.get(i), Quarantined)


@dataclass
class _Fed:
    """A step whose rows are being read."""

    group: Group
    step: Step
    buffer: int
    asked: list[tuple[tuple[Request, ...], Future[list[Quarantined | None]]]]
    tokens: Callable[[], Rows] | None = None  # None: nothing in it could be read


@dataclass
class _Closing:
    """Follows the last step of a group."""

    group: Group


@dataclass
class _Event:
    content: Any


@dataclass
class _Failure:
    error: BaseException


class _End:
    """No further groups."""


Rows = list[np.ndarray] | list[np.ndarray | CutError]
"""The tokens of each row, uint16, or why the codec has none."""


class Pipeline:
    """Encodes groups of cuts with one codec.

    Args:
        device: where the codec runs.
        readers: that fill `buffers`; the caller closes them.
        buffers: each large enough for any step.
    """

    def __init__(self, device: Device, rules: BatchRules, readers: Readers, buffers: Buffers) -> None:
        self._device, self._codec = device, device.codec
        self._rules, self._readers, self._buffers = rules, readers, buffers
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._finishing, self._finishing_changed = 0, threading.Condition()
        self._state: Any = None

    def run(self, groups: Iterable[Group], report: Report, progress: Callable[[float], Any]) -> None:
        """Encode everything.

        Args:
            groups: taken one ahead, in another thread; may wait for the next one.
            report: called in this thread with what groups give when they are finished, and with `progress(seconds)`.
            progress: makes an event of the seconds of audio just processed.
        """
        self._progress = progress
        threading.Thread(target=self._guarded, args=(self._feed, groups), name="feeder", daemon=True).start()
        collector = threading.Thread(target=self._guarded, args=(self._collect,), name="collector", daemon=True)
        collector.start()
        try:
            while not isinstance(item := self._inbox.get(), _End):
                if isinstance(item, _Event):
                    report(item.content)
                elif isinstance(item, _Failure):
                    raise item.error
                elif isinstance(item, _Fed):
                    self._encode(item)
                    self._outbox.put(item)
                else:
                    self._outbox.put(item)
        finally:
            self._stopped.set()
            with self._finishing_changed:  # what waits there to be stored is dropped by those who store it
                self._finishing_changed.notify_all()
            self._buffers.close()
            self._outbox.put(None)
            collector.join()

    def emit(self, event: Any) -> None:
        """Have an event reported, from any thread."""
        self._inbox.put(_Event(event))

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except Closed:
            pass
        except BaseException as error:
            self._inbox.put(_Failure(error))

    # ---- the feeder -----------------------------------------------------------------------------------------------

    def _feed(self, groups: Iterable[Group]) -> None:
        for number, group in enumerate(groups):
            known = sum(group.cuts[i].seconds for i in group.outcomes if group.failed(i))
            self.emit(self._progress(known))
            wanted = set(group.wanted)
            for i in sorted(wanted):
                if not self._codec.causal and group.samples[i] > self._rules.longest:
                    group.outcomes[i] = _too_long(group.cuts[i], self._codec)
                    wanted.remove(i)
                    self.emit(self._progress(group.cuts[i].seconds))

            def needed(i: int, group: Group = group, wanted: set[int] = wanted) -> bool:
                return i in wanted and not group.failed(i)

            for step in steps(group.samples, self._rules, needed):
                self._inbox.put(self._ask(number, group, step, needed))
            self._inbox.put(_Closing(group))
            if self._stopped.is_set():
                return
        self._inbox.put(_Closing(_NO_GROUP))

    def _ask(self, number: int, group: Group, step: Step, needed: Callable[[int], bool]) -> _Fed:
        """Have the rows of a step read."""
        buffer = self._buffers.take()
        requests, silent = [], []
        for row, piece in enumerate(step.pieces):
            if needed(piece.cut):
                cut, samples = group.cuts[piece.cut], group.samples[piece.cut]
                requests.append(Request(row, (number, piece.cut), cut, samples, piece.begin, piece.samples))
            else:
                silent.append(row)
        if silent:
            self._wave(buffer, step)[silent] = 0
        asked = []
        for lane, job in self._jobs(requests, step):
            future = self._readers.submit(ReadRows(buffer, step.shape, job, self._codec.sample_rate_in), lane)
            asked.append((job, future))
        return _Fed(group, step, buffer, asked)

    def _jobs(self, requests: list[Request], step: Step) -> Iterator[tuple[int | None, tuple[Request, ...]]]:
        """Requests dealt out to readers: streams to the one that has them open, others to any, a few at a time."""
        if step.streams:
            for lane in range(self._readers.count):
                mine = tuple(request for request in requests if hash(request.key) % self._readers.count == lane)
                if mine:
                    yield lane, mine
            return
        most = self._readers.job_seconds * self._codec.sample_rate_in
        job: list[Request] = []
        for request in requests:
            job.append(request)
            if sum(one.wanted for one in job) >= most:
                yield None, tuple(job)
                job = []
        if job:
            yield None, tuple(job)

    def _wave(self, buffer: int, step: Step) -> np.ndarray:
        rows, width = step.shape
        return self._buffers.arrays[buffer][: rows * width].reshape(step.shape)

    # ---- the calling thread ---------------------------------------------------------------------------------------

    def _encode(self, fed: _Fed) -> None:
        """Wait until the rows are read, and give them to the device."""
        group = fed.group
        for requests, future in fed.asked:
            for request, failure in zip(requests, future.result(), strict=True):
                i = fed.step.pieces[request.row].cut
                if failure is not None and not group.failed(i):
                    group.outcomes[i] = failure
        read = {request.row for requests, _ in fed.asked for request in requests}
        if all(group.failed(fed.step.pieces[row].cut) for row in read):
            return
        wave = self._wave(fed.buffer, fed.step)
        if fed.step.streams:
            fed.tokens = self._encode_windows(wave, fed.step)
        else:
            fed.tokens = self._encode_batch(wave, fed.step)

    def _encode_batch(self, wave: np.ndarray, step: Step) -> Callable[[], Rows]:
        lengths = np.array([max(piece.samples, 1) for piece in step.pieces])
        counts = [self._codec.token_count(int(length)) for length in lengths]
        try:
            tokens = self._device.encode(wave, lengths)
            return lambda: self._rows(tokens.result(), counts)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"  # the error itself holds the memory of the calls that it ended
        log.warning("a batch of %d cuts failed (%s); trying each alone", len(lengths), why)
        alone = self._encode_alone(wave, lengths)
        return lambda: alone

    def _encode_alone(self, wave: np.ndarray, lengths: np.ndarray) -> list[np.ndarray | CutError]:
        """Each row of a failed batch alone. When silence of the same shape fails too, the codec or the machine is at
        fault: then the error is raised, because quarantining a whole corpus would hide it."""
        self._device.encode(np.zeros((1, lengths[0]), np.float32), lengths[:1]).result()
        rows: list[np.ndarray | CutError] = []
        for row, length in zip(wave, lengths, strict=True):
            try:
                tokens = self._device.encode(row[None, :length].copy(), np.array([length])).result()
                rows += self._rows(tokens, [self._codec.token_count(int(length))])
            except Exception as error:
                rows.append(CutError("encoder failed", f"{type(error).__name__}: {error}"))
        return rows

    def _encode_windows(self, wave: np.ndarray, step: Step) -> Callable[[], Rows]:
        """One step of rows of streams; rows whose stream begins start from a new state."""
        rows = len(step.pieces)
        fresh = [row for row, piece in enumerate(step.pieces) if piece.begin == 0]
        state = self._device.renewed(self._state, rows, fresh)
        tokens, self._state = self._device.encode_step(wave, state)
        counts = [self._codec.token_count(piece.samples) for piece in step.pieces]
        return lambda: self._rows(tokens.result(), counts)

    def _rows(self, tokens: np.ndarray, counts: list[int]) -> list[np.ndarray]:
        """Rows [B, T] as uint16, without what is filled up."""
        counted = np.arange(tokens.shape[1]) < np.array(counts)[:, None]
        known = (tokens >= 0) & (tokens < min(self._codec.codebook_size, 1 << 16))
        assert tokens.shape[1] >= max(counts) and (known | ~counted).all()
        return [row[:count] for row, count in zip(tokens.astype(np.uint16), counts, strict=True)]

    # ---- the collector --------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        while (item := self._outbox.get()) is not None:
            if self._stopped.is_set():
                continue
            if isinstance(item, _Fed):
                rows = item.tokens() if item.tokens is not None else [None] * len(item.step.pieces)
                self._buffers.give(item.buffer)
                read = {request.row for requests, _ in item.asked for request in requests}
                done = sum(self._sort_in(item.group, item.step.pieces[row], rows[row]) for row in sorted(read))
                self.emit(self._progress(done))
            elif item.group is _NO_GROUP:
                self._wait_for_finishing(0)
                self._inbox.put(_End())
            else:
                for future in item.group.finish(item.group):
                    with self._finishing_changed:
                        self._finishing += 1
                    future.add_done_callback(self._finished)
                self._wait_for_finishing(MOST_FINISHING)

    def _finished(self, future: Future[Any]) -> None:
        if not future.cancelled():
            error = future.exception()
            self._inbox.put(_Event(future.result()) if error is None else _Failure(error))
        with self._finishing_changed:  # after its event is told; who waits for the future itself may go on before
            self._finishing -= 1
            self._finishing_changed.notify_all()

    def _wait_for_finishing(self, most: int) -> None:
        with self._finishing_changed:
            self._finishing_changed.wait_for(lambda: self._finishing <= most or self._stopped.is_set())

    def _sort_in(self, group: Group, piece: Piece, tokens: np.ndarray | CutError | None) -> float:
        """Keep the tokens of a row. Returns the seconds of audio that are done with it."""
        i = piece.cut
        cut, samples = group.cuts[i], group.samples[i]
        if group.failed(i):
            tokens = None
        elif isinstance(tokens, CutError):
            group.outcomes[i] = quarantine(cut, tokens, ATTEMPTS)
        elif tokens is not None and piece.samples < samples:
            group.parts.setdefault(i, []).append(tokens)
            if piece.begin + piece.samples == samples:
                group.outcomes[i] = np.concatenate(group.parts.pop(i))
        else:
            assert tokens is not None
            group.outcomes[i] = tokens
        return cut.seconds * (piece.samples / samples if samples else 1.0)


_NO_GROUP = Group([], [], {}, frozenset(), lambda group: [])


def _too_long(planned: PlannedCut, codec: Codec) -> Quarantined:
    detail = (
        f"the cut lasts {planned.seconds:.1f} s, and this codec, which does not stream, takes at most "
        f"{codec.longest_seconds:g} s; cut it at pauses first, or tokenize it with a causal codec"
    )
    return quarantine(planned, CutError("too long", detail), attempts=0)
