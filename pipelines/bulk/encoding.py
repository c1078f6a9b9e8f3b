"""The cuts of shards to tokens: what decides these, and the pipeline that makes them.

The codec's input is a pure function of the plan: batches are laid out from the manifest's durations before any file is
opened, and a cut that cannot be read leaves a row of silence in its batch. So the tokens of the other cuts are bit for
bit the same, whatever could not be read, wherever the work is done, and however often. (In float32 another batch shape
may flip a code bit whose latent is within rounding of zero. Only when the codec itself fails on a batch, for example
for lack of memory, are its cuts encoded one by one, with a warning in the log.)

Recordings longer than `LONG_SECONDS` pass through the codec's streaming state in windows, so memory stays bounded at
any length. A codec that does not stream takes every recording whole; recordings longer than its limit are quarantined
unread.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.bulk.feed.batches import BatchRules
from pipelines.bulk.feed.buffers import Buffers, SharedMemory
from pipelines.bulk.feed.decoders import DecoderLane
from pipelines.bulk.feed.device import Device, check_precision, products_in
from pipelines.bulk.feed.pipeline import Group, Pipeline
from pipelines.bulk.feed.reading import JOB_SECONDS, Lane, Readers, ThreadLane
from pipelines.format.ledger import Outcome
from pipelines.sources.audio import expected_samples
from pipelines.sources.cuts import PlannedCut, is_remote
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer import Codec

LONG_SECONDS = 60.0  # longer cuts are encoded in windows
WINDOW_SECONDS = 10.0
READERS = 2  # threads that read and resample where there are no decoders
REMOTE_READERS = 16  # the same for audio behind URLs, where most of them wait for answers; more if answers are slow
MOST_READERS = 64  # of these threads
BATCHES_AHEAD = 3  # at least; one of them is being encoded
MOST_TOGETHER = 1 << 16
NEWER = ("batch_shards", "long_rows", "precision")  # fields of `Encoding` that earlier versions lacked
CPU_THREADS = 1  # of torch, in every executor, because another number of threads adds in another order


@dataclass(frozen=True)
class Encoding:
    """What decides the tokens, besides the audio and the codec.

    Attributes:
        batch_seconds: padded audio in one batch, in seconds; bounds memory. Small enough for a CPU's caches by default
            (480 s ran at half the speed of 30 s); a GPU needs many times as much.
        device: where the codec runs, such as "cpu" or "cuda:1".
        batch_shards: so many shards, one after another in the plan, share batches: the more cuts there are to choose
            from, the less padding.
        long_rows: so many long recordings pass through the codec at the same time.
        precision: "fp32"; or, on a GPU, "tf32" or "bf16", which give slightly different tokens.
    """

    batch_seconds: float = 30.0
    device: str = "cpu"
    batch_shards: int = 1
    long_rows: int = 1
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if not 0 < self.batch_seconds < float("inf"):
            raise InputError(f"batch_seconds is {self.batch_seconds}, expected a positive number of seconds")
        for name in ("batch_shards", "long_rows"):
            if not 1 <= (value := getattr(self, name)) <= MOST_TOGETHER:
                raise InputError(f"{name} is {value}, expected 1 to {MOST_TOGETHER}")
        check_precision(self.precision, self.device)

    def to_dict(self) -> dict[str, Any]:
        """Everything that may change a bit of the tokens; stored in the plan and in dataset.json.

        Fields that earlier versions lacked are left out where they have their default, which is what those versions
        did: so the identity of such a run stays the same.
        """
        newer = {name: getattr(self, name) for name in NEWER if getattr(self, name) != getattr(Encoding, name)}
        return {
            "batch_seconds": self.batch_seconds,
            "device_type": self.device.partition(":")[0],
            "long_seconds": LONG_SECONDS,
            "window_seconds": WINDOW_SECONDS,
            "cpu_threads": CPU_THREADS,
            "resampler": "soxr HQ",
            "channels": "a MonoCut's channel; the mean of a MultiCut's channels",
            **newer,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], device: str) -> Encoding:
        """The settings of a run that `to_dict` described, on a device of the same type."""
        return cls(stored["batch_seconds"], device, **{name: stored[name] for name in NEWER if name in stored})

    def rules(self, codec: Codec) -> BatchRules:
        """How cuts are laid out for a codec."""
        rate = codec.sample_rate_in
        if not codec.causal:
            return BatchRules(self.batch_seconds * rate, codec.longest_seconds * rate, 1 << 40, 1)
        chunk = codec.chunk_samples
        window = max(1, int(WINDOW_SECONDS * rate) // chunk) * chunk
        return BatchRules(self.batch_seconds * rate, LONG_SECONDS * rate, window, chunk, self.long_rows)


@contextlib.contextmanager
def fixed_cpu_threads() -> Iterator[None]:
    """Run torch on `CPU_THREADS` threads, then restore its setting."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(CPU_THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def encode_cuts(
    cuts: list[PlannedCut],
    codec: Codec,
    encoding: Encoding,
    progress: Callable[[float], None] = lambda seconds: None,
) -> list[Outcome]:
    """Tokenize cuts that are laid out together, such as those of a shard.

    Args:
        cuts: in shard order.
        progress: called with the seconds of audio just processed.

    Returns:
        One outcome per cut, in the same order.
    """
    samples = [expected_samples(planned.cut, planned.seconds, codec.sample_rate_in) for planned in cuts]
    group = Group(cuts, samples, {}, frozenset(range(len(cuts))), lambda group: [])
    with fed_device(codec, encoding, remote=any(map(is_remote, cuts))) as (pipeline, _):
        pipeline.run([group], progress, lambda seconds: seconds)
    return [group.outcomes[i] for i in range(len(cuts))]


@contextlib.contextmanager
def fed_device(
    codec: Codec, encoding: Encoding, decoders: int = 0, remote: bool = False, threads: int | None = None
) -> Iterator[tuple[Pipeline, Readers]]:
    """A pipeline and its readers.

    Args:
        decoders: processes that read; 0: threads of this process.
        remote: the audio lies behind URLs, so more threads wait for it.
        threads: that read, where there are no decoders; None: as many as the time it takes asks for.
    """
    rules = encoding.rules(codec)
    lanes = decoders or threads or (REMOTE_READERS if remote else READERS)
    most = lanes if decoders or threads or not remote else MOST_READERS
    ahead = math.ceil(2 * lanes * JOB_SECONDS / encoding.batch_seconds)
    device = Device(codec, encoding.device)
    with contextlib.ExitStack() as stack:
        makers: list[Callable[[], Lane]]
        if decoders or device.is_gpu:
            memory = SharedMemory(BATCHES_AHEAD + ahead, rules.most)
            stack.callback(memory.close)
            if device.is_gpu:
                memory.pin(device.place)
            buffers = Buffers(memory.arrays)
        else:
            # Memory of the system is zero and costs nothing until it is touched.
            buffers = Buffers([np.zeros(rules.most, np.float32) for _ in range(BATCHES_AHEAD + ahead)])
        if decoders:
            makers = [lambda: DecoderLane(memory)] * most
        else:
            makers = [lambda: ThreadLane(buffers.arrays)] * most
        readers = Readers(makers, lanes, JOB_SECONDS * lanes / most)
        stack.callback(readers.close)
        stack.enter_context(products_in(encoding.precision))
        if device.is_gpu:
            stack.enter_context(_quick_switches())
        yield Pipeline(device, rules, readers, buffers), readers


@contextlib.contextmanager
def _quick_switches() -> Iterator[None]:
    """Let the thread that queues work for a GPU go on soon when another one is busy: by default it waits 5 ms after
    every operation, of which a batch has thousands."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
