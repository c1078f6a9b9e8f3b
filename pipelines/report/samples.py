"""Decodes a few cuts of a dataset, with the codec that made their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.format.description import Description, read_description, spread
from pipelines.format.layout import Layout
from pipelines.report.figures import read_shard
from pipelines.sources.cuts import duration
from pipelines.storage.folders import Folder
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer import Codec

GOOD_SECONDS = 3.0  # cuts of at least this are preferred
LONGEST_SECONDS = 12.0  # longer cuts are decoded up to here


@dataclass(frozen=True)
class Sample:
    """wave: float32 [S] at `sample_rate` Hz, the decoded start of the cut; seconds: of the whole cut."""

    id: str
    shard: int
    seconds: float
    text: str
    speaker: str
    wave: np.ndarray
    sample_rate: int


def find_codec(description: Description, codec: str | None = None) -> Codec:
    """The codec of a dataset.

    Args:
        codec: its name or folder; None: the name recorded in the dataset.

    Raises:
        InputError: there is no such codec, or it has another fingerprint.
    """
    from tokenizer import Codec

    recorded = description.codec
    found = Codec.from_pretrained(codec or recorded.name)
    if found.fingerprint != recorded.fingerprint:
        raise InputError(
            f"codec {found.name} has the fingerprint {found.fingerprint[:12]}, but these tokens were made by "
            f"{recorded.fingerprint[:12]} ({recorded.name}); give that one with --codec"
        )
    return found


def decode_samples(out: Folder, codec: Codec, count: int) -> list[Sample]:
    """Decode `count` cuts from shards spread evenly; more than one per shard where there are fewer shards."""
    import torch

    layout = Layout(out)
    shards = read_description(layout).shards
    samples: list[Sample] = []
    for entry in spread(shards, count):
        cuts, codes = read_shard(layout, entry.shard)
        wanted = -(-count // len(shards))
        good = [i for i, cut in enumerate(cuts) if duration(cut) >= GOOD_SECONDS] or list(range(len(cuts)))
        for i in spread(good, wanted)[: count - len(samples)]:
            tokens = codes[i][: round(LONGEST_SECONDS * codec.token_rate)].astype(np.int64)
            said: dict[str, Any] = next(iter(cuts[i].get("supervisions") or []), {})
            samples.append(
                Sample(
                    id=cuts[i]["custom"]["cut_id"],
                    shard=entry.shard,
                    seconds=duration(cuts[i]),
                    text=said.get("text") or "",
                    speaker=str(said.get("speaker") or ""),
                    wave=codec.decode(torch.from_numpy(tokens))[0].numpy(),
                    sample_rate=codec.sample_rate_out,
                )
            )
    return samples
