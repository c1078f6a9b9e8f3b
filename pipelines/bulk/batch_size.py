"""How much is encoded together when no option says so.

On a CPU that is a fixed amount of audio. On a GPU it is as much as memory allows, taken from the cuts of so many shards
that the batches hold little padding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipelines.bulk.encoding import WINDOW_SECONDS, Encoding
from pipelines.bulk.plan import Sharding
from pipelines.bulk.stored_plan import stored_identity
from pipelines.format.layout import Layout

if TYPE_CHECKING:
    from tokenizer import Codec

MEMORY_SHARE = 0.5  # of what is free; the rest is for fragmentation and for other processes on the GPU
PROBE_ROWS, PROBE_SECONDS = 4, 20.0  # of silence; longer rows are encoded piece by piece
MOST_SECONDS = 960.0  # an H100 does 31,000 times real time in batches of 600 s, 34,000 in those of 3,840 s
BATCHES_TOGETHER = 64  # of utterances from 1 to 30 s, sorted by length, hold 3 % of padding; half as many 6 %
MOST_SECONDS_TOGETHER = 64 * 3600.0  # of audio; a run that is killed may have to do this much again
SECONDS_OF_A_CUT = 10.0  # assumed where the size of shards is given in cuts


def batch_sharing(
    layout: Layout, batch_seconds: float, device: str, sharding: Sharding, batch_shards: int | None = None
) -> dict[str, int]:
    """`batch_shards` and `long_rows` of an `Encoding`.

    Args:
        batch_shards: the value that the user asked for; None: choose one.
    """
    if device == "cpu" and batch_shards is None:
        return {}
    stored = (stored_identity(layout) or {}).get("encoding", {})
    if stored and stored.get("device_type") == device.partition(":")[0] and batch_shards is None:
        # A run that resumes keeps the values it began with; runs of earlier versions have none, which means 1.
        return {name: stored.get(name, 1) for name in ("batch_shards", "long_rows")}
    seconds = 3600 * sharding.hours if sharding.hours is not None else (sharding.cuts or 1) * SECONDS_OF_A_CUT
    shards = math.ceil(min(BATCHES_TOGETHER * batch_seconds, MOST_SECONDS_TOGETHER) / seconds)
    return {
        "batch_shards": batch_shards or shards,
        "long_rows": max(1, int(batch_seconds / WINDOW_SECONDS)) if device != "cpu" else 1,
    }


def default_batch_seconds(layout: Layout, codec: str, device: str) -> float:
    """Seconds of audio for a batch.

    Args:
        layout: of the dataset to be made. The size of batches decides the bytes, so a run on a GPU that was
            interrupted, or is finished, keeps its own, however much memory there is now.
        codec: what `Codec.from_pretrained` takes.
        device: where it will run; where this machine has no such GPU, the default is that of a CPU.
    """
    import torch

    if not device.startswith("cuda") or not torch.cuda.is_available():
        return Encoding.batch_seconds
    identity = stored_identity(layout)
    if identity is not None and identity.get("encoding", {}).get("device_type") == "cuda":
        return identity["encoding"]["batch_seconds"]
    from tokenizer import Codec

    per_second = bytes_per_second(Codec.from_pretrained(codec, device=device), device)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return fitting_seconds(free, per_second)


def fitting_seconds(free_bytes: float, bytes_per_second: float) -> float:
    """The largest batch that fits: 30 s times a power of two, so that a little more or less memory changes nothing;
    30 s at least, MOST_SECONDS at most."""
    times = MEMORY_SHARE * free_bytes / bytes_per_second / Encoding.batch_seconds
    return min(Encoding.batch_seconds * 2 ** math.floor(math.log2(max(times, 1.0))), MOST_SECONDS)


def bytes_per_second(codec: Codec, device: str) -> float:
    """GPU memory that encoding takes per second of audio in a batch, without the weights, as measured here."""
    import torch

    rate = codec.sample_rate_in
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    codec.encode(torch.zeros(PROBE_ROWS, round(PROBE_SECONDS * rate), device=device))
    return max(torch.cuda.max_memory_allocated(device) - before, 1) / (PROBE_ROWS * PROBE_SECONDS)
