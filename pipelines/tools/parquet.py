"""A dataset as Parquet files in the layout of a Hugging Face dataset repository.

    OUT/
      README.md                               the card: which files are which split, and what wrote the codes
      data/train-00000-of-00009.parquet       a row a cut (`pipelines.tools.export.shard_table`)

`datasets.load_dataset("OUT")` reads it.
"""

from __future__ import annotations

from pathlib import Path

from pipelines.format.description import Description
from pipelines.format.layout import Layout
from pipelines.tools.export import check_split, load_pyarrow, shard_table, sound_shards
from pipelines.tools.hub_card import parquet_card


def write_parquet(folder: Path, layout: Layout, description: Description, split: str = "train") -> None:
    """Write the files of a dataset repository into an empty folder.

    Raises:
        InputError: the source is damaged, the split has no possible name, or pyarrow is not installed.
    """
    load_pyarrow()
    from pyarrow import parquet

    check_split(split)
    (folder / "data").mkdir()
    for number, entry in enumerate(sound_shards(layout, description)):
        name = f"data/{split}-{number:05d}-of-{len(description.shards):05d}.parquet"
        parquet.write_table(shard_table(layout, entry.shard), folder / name, compression="zstd")
    (folder / "README.md").write_text(parquet_card(description, split), encoding="utf-8", newline="\n")
