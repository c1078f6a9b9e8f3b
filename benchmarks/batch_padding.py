"""Silence in the batches of a bulk run, by arithmetic: batches of one shard, and of the shards that share them.

    python benchmarks/batch_padding.py

130 hours of utterances of 1 to 30 s (log-normal, median 6 s) in shards of three lengths, as `tokenize` lays them out.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from simulated_device import RATE, lengths

from pipelines.bulk.batch_size import batch_sharing
from pipelines.bulk.feed.batches import lay_out
from pipelines.bulk.plan import Sharding
from pipelines.format.layout import Layout


def main() -> None:
    cuts = [round(seconds * RATE) for seconds in lengths("free", 130)]
    print("| shard, h | batch, s | padding in batches of one shard | shards that share batches | padding | ", end="")
    print("batches an hour of audio |\n|---|---|---|---|---|---|")
    for hours in (0.1, 1.0, 5.0):
        shards = divided(cuts, 3600 * hours * RATE)
        for batch in (30, 120, 600, 960, 3840):
            number = batch_sharing(Layout(Path("nowhere")), batch, "cuda", Sharding(hours=hours))["batch_shards"]
            found = []
            for group in (1, number):
                joined = [list(itertools.chain(*shards[i : i + group])) for i in range(0, len(shards), group)]
                padded, batches = 0, 0
                for cut in joined:
                    for rows in lay_out(cut, batch * RATE, 60 * RATE)[0]:
                        padded, batches = padded + len(rows) * max(cut[i] for i in rows), batches + 1
                found.append(padded / sum(cuts) - 1)
            print(
                f"| {hours:g} | {batch:,} | {found[0]:.1%} | {number} | {found[1]:.1%} | "
                f"{batches / (sum(cuts) / RATE / 3600):.1f} |"
            )


def divided(cuts: list[int], most: float) -> list[list[int]]:
    """Cuts in shards that end once they hold `most` samples."""
    shards: list[list[int]] = [[]]
    for samples in cuts:
        if sum(shards[-1]) >= most:
            shards.append([])
        shards[-1].append(samples)
    return shards


if __name__ == "__main__":
    main()
