"""The cuts of one shard to tokens.

The codec's input is a pure function of the shard's cut list: batches are laid out from the manifest's durations before
any file is opened, and a cut that cannot be read leaves a row of silence in its batch. So the tokens of the other cuts
are bit for bit the same, whatever could not be read, wherever the work is done, and however often. (In float32 another
batch shape may flip a code bit whose latent is within rounding of zero. Only when the codec itself fails on a batch,
for example for lack of memory, are its cuts encoded one by one, with a warning in the log.)

Threads read and resample ahead while the codec works. Recordings longer than `LONG_SECONDS` pass through the codec's
streaming state in windows, so memory stays bounded at any length. A codec that does not stream takes every recording
whole; recordings longer than its limit are quarantined unread.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.format.ledger import Outcome, Quarantined, quarantine
from pipelines.sources.audio import expected_samples, read_resampled
from pipelines.sources.cuts import CutError, PlannedCut, is_remote
from tokenizer.chunks import regrouped
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer import Codec

log = logging.getLogger(__name__)

LONG_SECONDS = 60.0  # longer cuts are encoded alone, in windows
WINDOW_SECONDS = 10.0
READERS = 2  # threads that read and resample
REMOTE_READERS = 16  # where audio lies behind URLs, so that most of them wait for answers
BATCHES_AHEAD = 2
ATTEMPTS = 2  # a cut that fails is tried once more, alone
CPU_THREADS = 1  # of torch, in every executor: another number of threads sums in another order


@dataclass(frozen=True)
class Encoding:
    """What decides the tokens, besides the audio and the codec.

    Attributes:
        batch_seconds: padded audio in one batch, in seconds; bounds memory. Small enough for a CPU's caches by default
            (480 s ran at half the speed of 30 s); a GPU needs many times as much.
        device: where the codec runs, such as "cpu" or "cuda:1".
    """

    batch_seconds: float = 30.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 0 < self.batch_seconds < float("inf"):
            raise InputError(f"batch_seconds is {self.batch_seconds}, expected a positive number of seconds")

    def to_dict(self) -> dict[str, Any]:
        """Everything that may change a bit of the tokens; stored in the plan and in dataset.json."""
        return {
            "batch_seconds": self.batch_seconds,
            "device_type": self.device.partition(":")[0],
            "long_seconds": LONG_SECONDS,
            "window_seconds": WINDOW_SECONDS,
            "cpu_threads": CPU_THREADS,
            "resampler": "soxr HQ",
            "channels": "a MonoCut's channel; the mean of a MultiCut's channels",
        }


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


NO_OUTCOMES: Mapping[int, Outcome] = MappingProxyType({})


def encode_cuts(
    cuts: list[PlannedCut],
    codec: Codec,
    encoding: Encoding,
    progress: Callable[[float], None] = lambda seconds: None,
    settled: Mapping[int, Outcome] = NO_OUTCOMES,
) -> list[Outcome]:
    """Tokenize the cuts of a shard.

    Args:
        cuts: in shard order.
        progress: called with the seconds of audio just processed; settled cuts do not count.
        settled: outcomes that are already known, by position. These cuts are not read, and their rows are silent;
            the tokens of the others do not change.

    Returns:
        One outcome per cut, in the same order.
    """
    samples = [expected_samples(planned.cut, planned.seconds, codec.sample_rate_in) for planned in cuts]
    outcomes = dict(settled)
    long_seconds = LONG_SECONDS if codec.causal else codec.longest_seconds
    batches, long_cuts = lay_out(samples, codec.sample_rate_in, encoding.batch_seconds, long_seconds)
    readers = REMOTE_READERS if any(map(is_remote, cuts)) else READERS
    with ThreadPoolExecutor(readers, thread_name_prefix="read-audio") as pool, _cancelled_on_exit(pool):
        progress(sum(cuts[i].seconds for i, outcome in settled.items() if isinstance(outcome, Quarantined)))
        for batch, waves in _read_ahead(batches, cuts, samples, codec.sample_rate_in, pool, settled):
            outcomes.update(_encode_batch(batch, waves, cuts, samples, codec, encoding.device))
            progress(sum(cuts[i].seconds for i in waves))
        for i in long_cuts:
            if i in settled:
                continue
            if codec.causal:
                outcomes[i] = _encode_long(cuts[i], samples[i], codec, encoding.device, pool, progress)
            else:
                outcomes[i] = _too_long(cuts[i], codec)
                progress(cuts[i].seconds)
    return [outcomes[i] for i in range(len(cuts))]


def lay_out(
    samples: list[int], sample_rate: int, batch_seconds: float, long_seconds: float
) -> tuple[list[list[int]], list[int]]:
    """Batches of cut indices by length, then the cuts above `long_seconds`, which are in no batch.

    Args:
        samples: of each cut, at `sample_rate` Hz.
        batch_seconds: the longest cut of a batch times its number of cuts stays below this, unless it is one cut.
    """
    budget, batches, long_cuts = batch_seconds * sample_rate, [], []
    current: list[int] = []
    for i in sorted(range(len(samples)), key=lambda i: (samples[i], i)):
        if samples[i] > long_seconds * sample_rate:
            long_cuts.append(i)
            continue
        if current and (len(current) + 1) * samples[i] > budget:
            batches.append(current)
            current = []
        current.append(i)
    if current:
        batches.append(current)
    return batches, long_cuts


@contextlib.contextmanager
def _cancelled_on_exit(pool: ThreadPoolExecutor) -> Iterator[None]:
    """Cancel what is still to be read when the work is interrupted."""
    try:
        yield
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# ---- cuts of ordinary length, in batches ------------------------------------------------------------------------


Waves = dict[int, np.ndarray | Quarantined]
"""The audio of the cuts of a batch, by position in the shard; without the settled ones."""


def _read_ahead(
    batches: list[list[int]],
    cuts: list[PlannedCut],
    samples: list[int],
    sample_rate: int,
    pool: ThreadPoolExecutor,
    settled: Container[int],
) -> Iterator[tuple[list[int], Waves]]:
    """Each batch that is not settled, with the audio of its cuts, while the next batches are being read."""
    pending: deque[tuple[list[int], dict[int, Future[np.ndarray | Quarantined]]]] = deque()
    for batch in batches:
        reading = {i: pool.submit(_read_wave, cuts[i], samples[i], sample_rate) for i in batch if i not in settled}
        if reading:
            pending.append((batch, reading))
        if len(pending) > BATCHES_AHEAD:
            yield _wait_for(*pending.popleft())
    for batch, reading in pending:
        yield _wait_for(batch, reading)


def _wait_for(batch: list[int], reading: dict[int, Future[np.ndarray | Quarantined]]) -> tuple[list[int], Waves]:
    return batch, {i: future.result() for i, future in reading.items()}


def _read_wave(planned: PlannedCut, samples: int, sample_rate: int) -> np.ndarray | Quarantined:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return np.concatenate(list(read_resampled(planned, samples, sample_rate)))
        except MemoryError:
            raise
        except Exception as error:
            failure = quarantine(planned, error, attempt)
    return failure


def _encode_batch(
    batch: list[int],
    waves: Waves,
    cuts: list[PlannedCut],
    samples: list[int],
    codec: Codec,
    device: str,
) -> dict[int, Outcome]:
    """Outcomes of the cuts in `waves`. All of `batch` decides the shape that the codec is given."""
    outcomes: dict[int, Outcome] = {i: wave for i, wave in waves.items() if isinstance(wave, Quarantined)}
    if len(outcomes) == len(waves):
        return outcomes
    # Rows of cuts with no length have one silent sample: the codec takes no empty rows.
    lengths = np.maximum([samples[i] for i in batch], 1)
    padded = np.zeros((len(batch), lengths.max()), np.float32)
    for row, i in enumerate(batch):
        if i in waves and i not in outcomes:
            padded[row, : len(waves[i])] = waves[i]  # type: ignore[arg-type]
    rows: Sequence[np.ndarray | CutError]
    try:
        rows = _encode_rows(padded, lengths, codec, device)
    except Exception as error:
        log.warning("a batch of %d cuts failed (%s: %s); trying each alone", len(batch), type(error).__name__, error)
        rows = _encode_alone(padded, lengths, codec, device)
    for i, tokens in zip(batch, rows, strict=True):
        if i in waves and i not in outcomes:
            outcomes[i] = quarantine(cuts[i], tokens, ATTEMPTS) if isinstance(tokens, CutError) else tokens
    return outcomes


def _encode_rows(padded: np.ndarray, lengths: np.ndarray, codec: Codec, device: str) -> list[np.ndarray]:
    import torch

    tokens = codec.encode(torch.from_numpy(padded).to(device), torch.from_numpy(lengths).to(device)).cpu().numpy()
    return [_as_uint16(row[: codec.token_count(int(n))], codec) for row, n in zip(tokens, lengths, strict=True)]


def _encode_alone(padded: np.ndarray, lengths: np.ndarray, codec: Codec, device: str) -> list[np.ndarray | CutError]:
    """Each row of a failed batch alone. When silence of the same shape fails too, the codec or the machine is at fault:
    then the error is raised, because quarantining a whole corpus would hide it."""
    _encode_rows(np.zeros_like(padded[:1, : lengths[0]]), lengths[:1], codec, device)
    rows: list[np.ndarray | CutError] = []
    for wave, length in zip(padded, lengths, strict=True):
        try:
            rows.extend(_encode_rows(wave[None, :length], np.array([length]), codec, device))
        except Exception as error:
            rows.append(CutError("encoder failed", f"{type(error).__name__}: {error}"))
    return rows


def _as_uint16(tokens: np.ndarray, codec: Codec) -> np.ndarray:
    assert tokens.size and tokens.min() >= 0 and tokens.max() < codec.codebook_size <= 1 << 16
    return tokens.astype(np.uint16)


# ---- long recordings, in windows --------------------------------------------------------------------------------


def _too_long(planned: PlannedCut, codec: Codec) -> Quarantined:
    detail = (
        f"the cut lasts {planned.seconds:.1f} s, and this codec, which does not stream, takes at most "
        f"{codec.longest_seconds:g} s; cut it at pauses first, or tokenize it with a causal codec"
    )
    return quarantine(planned, CutError("too long", detail), attempts=0)


def _encode_long(
    planned: PlannedCut,
    samples: int,
    codec: Codec,
    device: str,
    pool: ThreadPoolExecutor,
    progress: Callable[[float], None],
) -> Outcome:
    failure: Exception
    for _ in range(ATTEMPTS):
        windows = regrouped(read_resampled(planned, samples, codec.sample_rate_in), _window_samples(codec))
        result = _encode_windows(windows, codec, device, pool, progress)
        if isinstance(result, np.ndarray):
            return _as_uint16(result, codec)
        failure = result
    progress(planned.seconds)
    return quarantine(planned, failure, ATTEMPTS)


def _encode_windows(
    windows: Iterator[np.ndarray],
    codec: Codec,
    device: str,
    pool: ThreadPoolExecutor,
    progress: Callable[[float], None],
) -> np.ndarray | Exception:
    """Tokens of a stream, or the error that reading it raised. Errors of the codec itself are raised."""
    import torch

    from tokenizer.live import LiveStream

    stream, done = LiveStream(codec), 0.0
    pieces: list[np.ndarray] = []
    ahead = pool.submit(next, windows, None)
    while True:
        try:
            wave = ahead.result()
        except MemoryError:
            raise
        except Exception as error:
            progress(-done)
            return error
        if wave is None:
            return np.concatenate(pieces)
        ahead = pool.submit(next, windows, None)
        pieces.append(stream.encode(torch.from_numpy(wave).to(device)).cpu().numpy())
        done += len(wave) / codec.sample_rate_in
        progress(len(wave) / codec.sample_rate_in)


def _window_samples(codec: Codec) -> int:
    return max(1, int(WINDOW_SECONDS * codec.sample_rate_in) // codec.chunk_samples) * codec.chunk_samples
