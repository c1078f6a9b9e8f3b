"""The process that does all model work in one thread, and the server's connection to it.

The model has its own process because PyTorch releases and reacquires the interpreter lock in every operation: next to a
thread that is busy with connections, each of the hundreds of operations in a step would wait for the lock.
"""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np

from slm.serve.messages import Command, EndPrompt, Event, Feed, Open, Request, Stop
from tokenizer.errors import InputError
from tokenizer.runs.memory import return_large_blocks

if TYPE_CHECKING:
    from slm.serve.scheduler import Scheduler
    from slm.vocabulary import Vocabulary

WARM_UP_CHUNKS = 7  # of a prompt: a piece of each size
COMMANDS = 64  # executed at most between two pieces of work
COMMAND_SECONDS = 0.005  # likewise; whatever clients send, streams are not kept waiting longer
EVENTS = 64  # passed on at most before other work of the event loop


@dataclass(frozen=True)
class ModelSettings:
    """What the process loads, and how many streams it serves."""

    codec: str
    engine: str
    precision: str
    device: str
    lm: str
    slots: int
    queue: int  # most streams that wait for a slot
    lead_seconds: float
    threads: int
    lm_engine: str = "torch"  # "onnx", with the codec on "onnx" too: the process does without PyTorch
    lm_precision: str = "fp32"


@dataclass(frozen=True)
class Models:
    """The loaded models, as clients are told. Rates in Hz; `context_seconds` is the language model's context."""

    codec: str
    fingerprint: str
    engine: str
    precision: str
    sample_rate_in: int
    sample_rate_out: int
    chunk_ms: float
    chunk_samples: int
    tokens_per_chunk: int
    samples_per_token: int
    token_rate: float
    codebook_size: int
    bitrate: float
    codec_parameters: int | None  # None for exported codecs
    lm: str
    lm_parameters: int
    context_seconds: float
    slots: int


def run_model(settings: ModelSettings, pipe: Connection) -> None:
    """The process: load, send the models (or the error), then execute commands until `Stop` or the end of the pipe."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the server decides when to stop
    return_large_blocks()
    try:
        try:
            scheduler, models = load(settings, pipe.send)
        except InputError as error:
            pipe.send(error)
            return
        pipe.send(models)
        while execute_commands(pipe, scheduler, scheduler.work()):
            pass
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the server has ended
        return


def execute_commands(pipe: Connection, scheduler: Scheduler, wait: float | None) -> bool:
    """Wait for commands for up to `wait` seconds (None: without end) and execute some of them. False: to stop."""
    end = math.inf
    for _ in range(COMMANDS):
        if not pipe.poll(wait):
            break
        wait, end = 0.0, min(end, time.monotonic() + COMMAND_SECONDS)
        command = pipe.recv()
        if isinstance(command, Stop):
            return False
        scheduler.do(command)
        if time.monotonic() > end:
            break
    return True


def load(settings: ModelSettings, emit: Callable[[Event], None]) -> tuple[Scheduler, Models]:
    """Load the models and warm them up. Returns the scheduler and the description of the models. Raises InputError."""
    from slm.generation.sampling import Sampling
    from slm.serve.scheduler import Scheduler
    from slm.serve.slots import SlotBatch

    read = loaded_arrays if settings.lm_engine == "onnx" else loaded_tensors
    codec, model, vocabulary, codec_parameters, lm_parameters = read(settings)
    batch = SlotBatch(codec, model, vocabulary, settings.slots)
    models = Models(
        codec=codec.name,
        fingerprint=codec.fingerprint,
        engine=settings.engine,
        precision=settings.precision,
        sample_rate_in=codec.sample_rate_in,
        sample_rate_out=codec.sample_rate_out,
        chunk_ms=codec.latency_ms,
        chunk_samples=codec.chunk_samples,
        tokens_per_chunk=codec.tokens_per_chunk,
        samples_per_token=codec.samples_per_token,
        token_rate=codec.token_rate,
        codebook_size=codec.codebook_size,
        bitrate=codec.bitrate,
        codec_parameters=codec_parameters,
        lm=settings.lm,
        lm_parameters=lm_parameters,
        context_seconds=batch.context / codec.token_rate,
        slots=settings.slots,
    )
    warm = Scheduler(batch, lambda _: None)
    noise = np.random.default_rng(0).normal(0, 0.01, WARM_UP_CHUNKS * codec.chunk_samples).astype(np.float32)
    warm.do(Open(0, Request(Sampling(top_p=0.95), 0, 0.3, 0.3, live=False)))
    warm.do(Feed(0, noise))
    warm.do(EndPrompt(0, time.monotonic()))
    while warm.work() is not None:
        pass
    return Scheduler(batch, emit, settings.lead_seconds, settings.queue), models


def loaded_tensors(settings: ModelSettings) -> tuple[Any, Any, Vocabulary, int | None, int]:
    """Codec, language model on PyTorch, its vocabulary, and the parameters of both (of an exported codec: None)."""
    import torch

    from slm.checkpoint import load_lm
    from tokenizer import Codec

    torch.set_num_threads(settings.threads)
    codec = Codec.from_pretrained(settings.codec, settings.device, engine=settings.engine, precision=settings.precision)
    model, vocabulary = load_lm(settings.lm, settings.device)
    codec_parameters = sum(p.numel() for p in codec.parameters()) if isinstance(codec, Codec) else None
    return codec, model, vocabulary, codec_parameters, sum(p.numel() for p in model.parameters())


def loaded_arrays(settings: ModelSettings) -> tuple[Any, Any, Vocabulary, None, int]:
    """The same with both on ONNX Runtime: this process never imports PyTorch."""
    from slm.onnx_engine.folders import load_arrays

    codec, model, vocabulary = load_arrays(
        settings.codec, settings.precision, settings.lm, settings.lm_precision, settings.threads
    )
    return codec, model, vocabulary, None, model.shape.parameters


class ModelProcess:
    """The server's side. `send` does not block; events go to `on_event` in the event loop's thread.

    Raises:
        InputError: a model could not be loaded, or the process died while loading.
    """

    def __init__(self, settings: ModelSettings) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=run_model, args=(settings, theirs), daemon=True, name="model")
        self._process.start()
        theirs.close()
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise InputError("the model's process died while loading; see its message above") from None
        if isinstance(answer, InputError):
            raise answer
        self.models: Models = answer
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        threading.Thread(target=self._send_all, daemon=True).start()

    def send(self, command: Command) -> None:
        self._commands.put(command)

    @property
    def backlog(self) -> int:
        """Commands that the process has not taken yet."""
        return self._commands.qsize()

    def listen(self, on_event: Callable[[Event], None], on_death: Callable[[], None]) -> None:
        """Start passing events to `on_event` in the running event loop; `on_death` is called if the process ends."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            try:
                for _ in range(EVENTS):
                    if not self._pipe.poll():
                        return
                    on_event(self._pipe.recv())
            except (EOFError, OSError):
                loop.remove_reader(self._pipe.fileno())
                on_death()

        loop.add_reader(self._pipe.fileno(), read)

    def close(self) -> None:
        """End the process, after five seconds by force."""
        self.send(Stop())
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _send_all(self) -> None:
        try:
            while True:
                command = self._commands.get()
                self._pipe.send(command)
                if isinstance(command, Stop):
                    return
        except OSError:  # it has died; `on_death` reports it
            return
