"""The time and disk space that tokenizing a corpus will take, from its manifest and a rate, in one pass.

Tokens, indexes and shards are counted exactly, as if every cut could be read; the compressed size of the cuts' JSON is
extrapolated from the first `SAMPLE_CUTS`.
"""

from __future__ import annotations

import tarfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.bulk.encoding import Encoding, encode_cuts, fixed_cpu_threads
from pipelines.bulk.plan import Sharding
from pipelines.bulk.planned_lines import SelectedCuts
from pipelines.format.layout import INDEX_DTYPE
from pipelines.format.ledger import Quarantined
from pipelines.format.member_ids import member_id
from pipelines.format.shards import shar_cut
from pipelines.sources.audio import expected_samples
from pipelines.sources.cuts import PlannedCut, Selection
from pipelines.storage.stable_bytes import gzip_bytes, json_lines
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer import Codec

SAMPLE_CUTS = 1000
NPY_HEADER = 128
WARM_UP_SECONDS, MEASURED_SECONDS = 10.0, 60.0  # of audio


@dataclass(frozen=True)
class Estimate:
    """A corpus before it is tokenized.

    Attributes:
        cuts: those that take part; `skipped` others do not, and `unusable` of them state no duration or rate and will
            fail.
        hours: of audio.
        tar_bytes, index_bytes: of `shards/*.tar` and of `index/`.
        cuts_bytes: of `shards/cuts.*.jsonl.gz`, extrapolated.
        packed_bytes: of `packed/`; 0 without it.
        ideal_bytes: the bits of the tokens alone.
    """

    cuts: int
    skipped: int
    unusable: int
    hours: float
    tokens: int
    shards: int
    tar_bytes: int
    index_bytes: int
    cuts_bytes: int
    packed_bytes: int
    ideal_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.tar_bytes + self.index_bytes + self.cuts_bytes + self.packed_bytes


def estimate(inputs: list[str], selection: Selection, sharding: Sharding, codec: Codec) -> Estimate:
    """Count what tokenizing `inputs` (of `find_inputs`) with `codec` makes. Raises InputError where they are broken."""
    source = SelectedCuts.of(inputs, selection)
    cuts = unusable = tokens = shards = tar = packed = 0
    seconds = 0.0
    in_shard, shard_tar, shard_seconds = 0, 0, 0.0
    sample: list[tuple[PlannedCut, int]] = []
    for item in source:
        planned = PlannedCut.of(item, member_id(item.cut["id"]))
        samples = expected_samples(planned.cut, planned.seconds, codec.sample_rate_in)
        count = codec.token_count(samples) if samples else 0
        unusable += not samples
        cuts, tokens, seconds = cuts + 1, tokens + count, seconds + planned.seconds
        shard_tar += _in_blocks(NPY_HEADER + 2 * count) + 3 * tarfile.BLOCKSIZE
        packed += -(-count * codec.bits_per_token // 8)
        if len(sample) < SAMPLE_CUTS:
            sample.append((planned, count))
        in_shard, shard_seconds = in_shard + 1, shard_seconds + planned.seconds
        if sharding.is_full(in_shard, shard_seconds):
            shards, tar = shards + 1, tar + _whole_tar(shard_tar)
            in_shard, shard_tar, shard_seconds = 0, 0, 0.0
    if in_shard:
        shards, tar = shards + 1, tar + _whole_tar(shard_tar)
    lines = json_lines(shar_cut(planned, count, codec.token_rate) for planned, count in sample)
    ids = zlib.compress("\n".join(planned.member for planned, _ in sample).encode("ascii"), 9)
    of_sample = cuts / max(len(sample), 1)
    return Estimate(
        cuts=cuts,
        skipped=source.skipped,
        unusable=unusable,
        hours=seconds / 3600,
        tokens=tokens,
        shards=shards,
        tar_bytes=tar,
        index_bytes=shards * (NPY_HEADER + 8) + cuts * (INDEX_DTYPE.itemsize + 8),
        cuts_bytes=round(len(gzip_bytes(lines)) * of_sample),
        packed_bytes=packed + 4 * cuts + round(len(ids) * of_sample) if sharding.pack else 0,
        ideal_bytes=tokens * codec.bits_per_token // 8,
    )


def measured_rate(inputs: list[str], selection: Selection, encoding: Encoding, codec: Codec) -> float:
    """How many times faster than real time one worker reads and encodes the first cuts of the input.

    Raises:
        InputError: none of them can be read.
    """
    source = SelectedCuts.of(inputs, selection)
    warm_up, cuts = list(_some(source, WARM_UP_SECONDS)), list(_some(source, MEASURED_SECONDS))
    cuts = cuts or warm_up
    with fixed_cpu_threads():
        encode_cuts(warm_up, codec, encoding)
        begun = time.perf_counter()
        outcomes = encode_cuts(cuts, codec, encoding)
        elapsed = time.perf_counter() - begun
    done = [cut.seconds for cut, outcome in zip(cuts, outcomes, strict=True) if not isinstance(outcome, Quarantined)]
    if not done:
        reason = next((f": {outcome.detail}" for outcome in outcomes if isinstance(outcome, Quarantined)), "")
        raise InputError(f"none of the first {len(cuts)} cuts can be read{reason}; fix the input, or give --rate")
    return sum(done) / elapsed


def _some(source: SelectedCuts, seconds: float) -> Iterator[PlannedCut]:
    for item in source:
        planned = PlannedCut.of(item, member_id(item.cut["id"]))
        yield planned
        seconds -= planned.seconds
        if seconds <= 0:
            return


def _in_blocks(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _whole_tar(members: int) -> int:
    """Bytes of a tar: two empty blocks end it, and it is filled to whole records."""
    return -(-(members + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
