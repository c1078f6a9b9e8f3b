"""A dataset as Parquet files in the layout of a Hugging Face dataset repository.

    OUT/
      README.md                               the card: which files are which split, and what wrote the codes
      data/train-00000-of-00009.parquet       a row a cut

A row has `id`, `codes` (list of uint16), `seconds`, `speaker`, `language`, `text` (of all supervisions, null where
there is none) and `cut`, the whole Lhotse cut as JSON. `datasets.load_dataset("OUT")` reads it.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from pipelines.format.description import Description, Totals, read_description
from pipelines.format.layout import Layout
from pipelines.format.shards import stored_cuts
from pipelines.storage.stable_bytes import json_bytes
from tokenizer.errors import InputError


def export(source: Path, out: Path, split: str = "train") -> Totals:
    """Write the folder OUT, which appears whole or not at all.

    Returns:
        The totals of the dataset.

    Raises:
        InputError: OUT is there already, the source is damaged or no dataset, or pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError("exporting needs pyarrow: pip install 'focalstream[datasets]'") from None

    layout = Layout(source)
    description = read_description(layout)
    if out.exists():
        raise InputError(f"{out} is there already; give a new OUT")
    if not split.replace("_", "").isalnum():
        raise InputError(f"the split is named {split!r}; expected letters, digits and _")
    strings = ("id", "speaker", "language", "text", "cut")
    schema = pyarrow.schema(
        [("codes", pyarrow.list_(pyarrow.uint16())), ("seconds", pyarrow.float64())]
        + [(name, pyarrow.string()) for name in strings]
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as unfinished:
        folder = Path(unfinished, "dataset")
        (folder / "data").mkdir(parents=True)
        shards = description.shards
        for number, entry in enumerate(shards):
            if not entry.is_sound(layout):
                raise InputError(f"{source}: shard {entry.shard} is damaged; `focalstream repair {source}` first")
            rows = [_row(cut.id, cut.cut, cut.seconds, codes) for cut, codes in stored_cuts(layout, entry.shard)]
            name = f"data/{split}-{number:05d}-of-{len(shards):05d}.parquet"
            parquet.write_table(pyarrow.Table.from_pylist(rows, schema), folder / name, compression="zstd")
        (folder / "README.md").write_text(_card(description, split), encoding="utf-8")
        (folder / "codec.json").write_bytes(json_bytes(description.codec.to_dict()))
        os.replace(folder, out)
    return description.totals


def _row(cut_id: str, cut: dict[str, Any], seconds: float, codes: Any) -> dict[str, Any]:
    supervisions = cut.get("supervisions") or []
    texts = [supervision["text"] for supervision in supervisions if supervision.get("text")]
    return {
        "id": cut_id,
        "codes": codes,
        "seconds": seconds,
        "speaker": next((s["speaker"] for s in supervisions if s.get("speaker")), None),
        "language": next((s["language"] for s in supervisions if s.get("language")), None),
        "text": " ".join(texts) or None,
        "cut": json.dumps(cut),
    }


def _card(description: Description, split: str) -> str:
    codec, totals = description.codec, description.totals
    return f"""---
configs:
- config_name: default
  data_files:
  - split: {split}
    path: data/{split}-*.parquet
---

# Speech tokens

{totals.cuts:,} cuts, {totals.hours:.2f} h, {totals.tokens:,} tokens at {codec.token_rate:g} a second, each
below {codec.codebook_size:,}. Written by `focalstream export-dataset`.

Codec `{codec.name}`, fingerprint `{codec.fingerprint}` (see codec.json): decode with no other.
"""
