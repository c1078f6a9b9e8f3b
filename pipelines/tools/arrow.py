"""A dataset as Arrow files in the layout that `datasets.Dataset.save_to_disk` writes.

    OUT/
      data-00000-of-00009.arrow       a row a cut (`pipelines.tools.export.shard_table`), as a stream of Arrow's IPC
      dataset_info.json  state.json   which files there are, and the name of the split
      README.md

`datasets.load_from_disk("OUT")` maps the files into memory: no copy, no cache. Types are those of the files' schema.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.format.description import Description
from pipelines.format.layout import Layout
from pipelines.storage.stable_bytes import json_bytes
from pipelines.tools.export import about, check_split, load_pyarrow, shard_table, sound_shards
from tokenizer.errors import InputError


def write_arrow(folder: Path, layout: Layout, description: Description, split: str = "train") -> None:
    """Write the files of a saved dataset into an empty folder.

    Raises:
        InputError: the source is damaged or has no cuts, the split has no possible name, or pyarrow is not installed.
    """
    pyarrow = load_pyarrow()
    check_split(split)
    if not description.shards:
        raise InputError(f"{layout.out}: has no cuts, and a saved dataset needs some; use --format parquet")
    names = []
    for number, entry in enumerate(sound_shards(layout, description)):
        names.append(f"data-{number:05d}-of-{len(description.shards):05d}.arrow")
        table = shard_table(layout, entry.shard)
        with (
            pyarrow.OSFile(str(folder / names[-1]), "wb") as file,
            pyarrow.ipc.new_stream(file, table.schema) as stream,
        ):
            stream.write_table(table)
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": description.checksum[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    info = {"citation": "", "description": "", "homepage": "", "license": ""}
    (folder / "state.json").write_bytes(json_bytes(state))
    (folder / "dataset_info.json").write_bytes(json_bytes(info))
    (folder / "README.md").write_text(f"# Speech tokens\n\n{about(description)}", encoding="utf-8", newline="\n")
