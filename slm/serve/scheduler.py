"""Scheduling: admission to slots, prompts in pieces between the steps of generating streams, and pacing.

A generating stream is kept slightly ahead of its listener, who starts playback at the first chunk: chunk k is due k
chunks after the first was sent. The lead of a stream is the audio that was sent and has not been played yet.

- A step runs when the lead of any stream is below the minimum lead. It includes every stream whose lead is less than a
  chunk above the minimum. So all streams step together, once per chunk.
- Between steps, unless a lead is close to zero, the prompts of new streams are processed piece by piece: first prompts
  that have ended, the shortest remainder first, then the others in turn.
- Streams that are not live (whole files) take part in the steps of the others, and step alone when nothing else is
  pending. They queue behind all live streams, and with several slots they never take the last one.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from slm.generation.level import LevelMatch
from slm.serve.messages import (
    Cancel,
    Command,
    Decode,
    Done,
    Encode,
    EndPrompt,
    Event,
    Feed,
    Open,
    Queued,
    Ready,
    Request,
    Sound,
)
from slm.serve.slots import PIECE_CHUNKS, Piece, Sampler, SlotBatch, piece_chunks
from tokenizer.live import LiveStream, to_pcm

CLOSE = 0.5  # share of the minimum lead below which a step has priority over prompts
PATIENCE = 8  # steps after which a prompt has priority anyway, on a machine that is too slow


@dataclass
class Stream:
    """One continuation, from the request to the last chunk."""

    number: int
    request: Request
    sampler: Sampler
    slot: int = -1
    level: LevelMatch = field(default_factory=LevelMatch)
    state: Any = None  # of the codec, from the prompt's first piece to its end
    waiting: deque[np.ndarray] = field(default_factory=deque)  # samples of the prompt that are not processed yet
    samples: int = 0  # in `waiting`
    prompt_chunks: int = 0  # processed
    prompt_ended: float | None = None  # time
    generating: bool = False
    begun: float = 0.0  # time of the first chunk
    chunks: int = 0  # sent
    first_audio_ms: float | None = None
    missed: int = 0


class Scheduler:
    """Schedules streams over one batch of slots.

        scheduler.do(Open(1, request)); scheduler.do(Feed(1, samples)); scheduler.do(EndPrompt(1, now))
        while (wait := scheduler.work()) is not None: sleep(wait)     # events go to `emit`

    Args:
        batch: the slots.
        emit: receives each event, in order.
        lead_seconds: the minimum lead of a stream over its listener.
        queue: the most streams that wait for a slot, and the most waiting jobs.
        clock: seconds, like `time.monotonic`.
    """

    def __init__(
        self,
        batch: SlotBatch,
        emit: Callable[[Event], None],
        lead_seconds: float = 0.24,
        queue: int = 16,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._batch, self._emit, self._lead, self._longest_queue, self._clock = batch, emit, lead_seconds, queue, clock
        codec = batch.codec
        self._chunk = codec.tokens_per_chunk / codec.token_rate
        self._streams: dict[int, Stream] = {}  # those with a slot
        self._queue: deque[Stream] = deque()
        self._jobs: deque[tuple[int, Iterator[bytes | None]]] = deque()
        self._free = list(range(batch.size))
        self._steps_in_a_row = 0  # without work on a prompt

    # ---- commands -------------------------------------------------------------------------------------------------

    def do(self, command: Command) -> None:
        """Execute a command. Commands for streams that have ended are ignored."""
        if isinstance(command, Open):
            self._open(command)
        elif isinstance(command, Feed):
            if (stream := self._streams.get(command.stream)) and stream.prompt_ended is None:
                stream.waiting.append(command.samples)
                stream.samples += len(command.samples)
        elif isinstance(command, EndPrompt):
            if (stream := self._streams.get(command.stream)) and stream.prompt_ended is None:
                stream.prompt_ended = command.at
        elif isinstance(command, Cancel):
            self._cancel(command.stream)
        elif isinstance(command, (Encode, Decode)):
            if len(self._jobs) >= self._longest_queue:
                self._emit(Done(command.stream, "full"))
                return
            work = self._encode(command.samples) if isinstance(command, Encode) else self._decode(command.codes)
            self._jobs.append((command.stream, work))

    def _open(self, command: Open) -> None:
        request = command.request
        least = self._batch.codec.tokens_for(request.min_seconds)
        most = None if request.max_seconds is None else self._batch.codec.tokens_for(request.max_seconds)
        sampling = request.sampling
        if sampling.silence_limit:
            sampling = replace(sampling, silent_codes=self._batch.silent_codes)
        sampler = Sampler(sampling, request.seed, least, most)
        stream = Stream(command.stream, request, sampler)
        if self._has_slot_for(stream):
            self._admit(stream)
        elif len(self._queue) >= self._longest_queue:
            self._emit(Done(command.stream, "full"))
        else:
            behind = [other for other in self._queue if request.live and not other.request.live]
            place = len(self._queue) - len(behind)
            self._queue.insert(place, stream)
            self._report_positions(place)

    def _has_slot_for(self, stream: Stream) -> bool:
        files = sum(not other.request.live for other in self._streams.values())
        return bool(self._free) and (stream.request.live or files < max(1, self._batch.size - 1))

    def _admit(self, stream: Stream) -> None:
        stream.slot = self._free.pop(0)  # cleared with the first piece of the prompt: a start alone costs nothing
        self._streams[stream.number] = stream
        self._emit(Ready(stream.number))

    def _report_positions(self, begin: int = 0) -> None:
        """Report positions from index `begin` of the queue on."""
        for position, stream in list(enumerate(self._queue, 1))[begin:]:
            self._emit(Queued(stream.number, position))

    def _cancel(self, number: int) -> None:
        if stream := self._streams.get(number):
            self._finish(stream, "cancelled")
        elif waiting := next((stream for stream in self._queue if stream.number == number), None):
            place = self._queue.index(waiting)
            self._queue.remove(waiting)
            self._emit(Done(number, "cancelled"))
            self._report_positions(place)
        else:
            self._jobs = deque(job for job in self._jobs if job[0] != number)

    def _finish(self, stream: Stream, reason: str) -> None:
        del self._streams[stream.number]
        self._free.append(stream.slot)
        self._free.sort()
        seconds = stream.sampler.count / self._batch.codec.token_rate
        self._emit(Done(stream.number, reason, seconds, stream.first_audio_ms, stream.missed))
        if self._queue and self._has_slot_for(self._queue[0]):
            self._admit(self._queue.popleft())
            self._report_positions()

    # ---- work -----------------------------------------------------------------------------------------------------

    def work(self) -> float | None:
        """Do one piece of work. Returns the seconds until the next one, 0 for at once; None: nothing to do."""
        self._begin_generating()
        now = self._clock()
        generating = [stream for stream in self._streams.values() if stream.generating]
        leads = [self._lead_of(stream, now) for stream in generating if stream.request.live]
        least = min(leads, default=math.inf)
        next_prompt = min(filter(self._next_piece, self._streams.values()), key=self._waits_for, default=None)
        if next_prompt and (least >= CLOSE * self._lead or self._steps_in_a_row >= PATIENCE):
            self._steps_in_a_row = 0
            self._process_prompt(next_prompt)
        elif least < self._lead:
            self._steps_in_a_row += 1
            self._step(generating, now)
        elif self._jobs:
            self._do_job()
        elif len(leads) < len(generating):
            self._step(generating, now)
        elif generating:
            return max(0.001, least - self._lead)
        else:
            return None
        return 0.0

    def _begin_generating(self) -> None:
        """Start generation for streams whose prompt has ended and is processed to its last whole chunk."""
        for stream in list(self._streams.values()):
            if stream.generating or stream.prompt_ended is None or self._next_piece(stream):
                continue
            if not stream.prompt_chunks:
                self._finish(stream, "no prompt")
                continue
            self._batch.end_prompt(stream.slot, stream.state)
            stream.state, stream.generating = None, True
            stream.waiting.clear()

    def _waits_for(self, stream: Stream) -> float:
        """Samples that a listener waits for; infinite before the prompt ends, when nobody waits."""
        return math.inf if stream.prompt_ended is None else stream.samples

    def _lead_of(self, stream: Stream, now: float) -> float:
        """Seconds of sent audio that have not been played yet; 0 before the first chunk, which is due."""
        return stream.chunks * self._chunk - (now - stream.begun) if stream.chunks else 0.0

    def _next_piece(self, stream: Stream) -> int:
        """Chunks of the next piece of the prompt; 0 if there is none yet."""
        if stream.generating:
            return 0
        return piece_chunks(stream.samples // self._batch.codec.chunk_samples, stream.prompt_ended is not None)

    def _process_prompt(self, stream: Stream) -> None:
        chunks = self._next_piece(stream)
        size = chunks * self._batch.codec.chunk_samples
        samples = taken(stream.waiting, size)
        stream.samples -= size
        if stream.state is None:
            stream.state = self._batch.begin(stream.slot)
        piece, stream.state = self._batch.process_prompt(stream.slot, samples, stream.state)
        piece = piece._replace(audio=stream.level.prompt(samples, piece.audio, chunks * self._chunk))
        stream.prompt_chunks += chunks
        self._streams[stream.number] = self._streams.pop(stream.number)  # to the end of the order
        self._emit(self._sound(stream, piece, False, 0.0, 0.0))

    def _step(self, generating: list[Stream], now: float) -> None:
        due = {
            stream.slot: stream
            for stream in generating
            if not stream.request.live or self._lead_of(stream, now) < self._lead + self._chunk
        }
        began = time.perf_counter()
        pieces = self._batch.step({slot: stream.sampler for slot, stream in due.items()})
        step_ms = 1000 * (time.perf_counter() - began)
        for slot, piece in pieces.items():
            self._deliver(due[slot], piece, step_ms)

    def _deliver(self, stream: Stream, piece: Piece, step_ms: float) -> None:
        now = self._clock()
        if len(piece.codes):
            if stream.chunks == 0:
                stream.begun = now
                assert stream.prompt_ended is not None
                stream.first_audio_ms = 1000 * (now - stream.prompt_ended)
            late_ms = max(0.0, -1000 * self._lead_of(stream, now)) if stream.request.live else 0.0
            stream.missed += late_ms > 0
            stream.chunks += 1
            piece = piece._replace(audio=stream.level.speech(piece.audio))
            self._emit(self._sound(stream, piece, True, step_ms, late_ms))
        if stream.sampler.ended or stream.sampler.is_full:
            self._finish(stream, "ended" if stream.sampler.ended else "length")

    @staticmethod
    def _sound(stream: Stream, piece: Piece, new: bool, step_ms: float, late_ms: float) -> Sound:
        return Sound(stream.number, new, piece.codes.astype(np.uint16), to_pcm(piece.audio), step_ms, late_ms)

    # ---- whole files ----------------------------------------------------------------------------------------------

    def _do_job(self) -> None:
        number, work = self._jobs.popleft()
        result = next(work)
        if result is None:
            self._jobs.append((number, work))
        else:
            self._emit(Done(number, "done", result=result))

    def _encode(self, samples: np.ndarray) -> Iterator[bytes | None]:
        codec = self._batch.codec
        stream: Any = LiveStream(codec)  # of arrays
        tokens = []
        size = PIECE_CHUNKS * codec.chunk_samples
        for begin in range(0, len(samples), size):
            tokens.append(stream.encode(samples[begin : begin + size]))
            yield None
        yield np.concatenate(tokens).astype("<u2").tobytes()

    def _decode(self, codes: np.ndarray) -> Iterator[bytes | None]:
        codec = self._batch.codec
        stream: Any = LiveStream(codec)
        pcm = []
        size = PIECE_CHUNKS * codec.tokens_per_chunk
        for begin in range(0, len(codes), size):
            pcm.append(to_pcm(stream.decode(codes[begin : begin + size])))
            yield None
        yield b"".join(pcm)


def taken(waiting: deque[np.ndarray], size: int) -> np.ndarray:
    """Remove the first `size` samples of those that wait, and return them, float32 [size]."""
    parts: list[np.ndarray] = []
    while size:
        part = waiting.popleft()
        if len(part) > size:
            waiting.appendleft(part[size:])
        parts.append(part[:size])
        size -= len(parts[-1])
    return np.concatenate(parts)
