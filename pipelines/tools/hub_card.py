"""The card of a dataset repository on the Hugging Face Hub, and the list of what an upload would put there."""

from __future__ import annotations

from pathlib import Path

from pipelines.format.description import Description
from pipelines.tools.export import about

SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}
LARGEST = "10M<n<100M"


def dataset_card(description: Description, split: str) -> str:
    """README.md of an export as Parquet: what the Hub reads, what the columns are, and how to make sound of a row."""
    codec, totals = description.codec, description.totals
    size = next((name for most, name in SIZES.items() if totals.cuts < most), LARGEST)
    return f"""---
configs:
- config_name: default
  data_files:
  - split: {split}
    path: data/{split}-*.parquet
size_categories:
- {size}
task_categories:
- text-to-speech
- automatic-speech-recognition
tags:
- speech-tokens
- focalstream
---

# Speech tokens

{about(description)}
{totals.quarantined:,} of {totals.planned:,} cuts could not be tokenized and are not here.

| column | meaning |
|---|---|
| `id` | of the cut in the corpus |
| `codes` | its tokens, uint16, {codec.token_rate:g} a second |
| `seconds` | of audio |
| `speaker`, `language`, `text` | of its supervisions, or null |
| `cut` | the Lhotse cut as JSON |

```python
import torch
from datasets import load_dataset
from tokenizer import Codec

row = next(iter(load_dataset("THIS_REPOSITORY", split="{split}", streaming=True)))
codec = Codec.from_pretrained("CODEC")
assert codec.fingerprint == "{codec.fingerprint}"
wave = codec.decode(torch.tensor(row["codes"])[None])  # float32 [1, S] at codec.sample_rate_out
```

The rights to the recordings decide what may be done with the tokens, since they can be made audible again: add
`license:` to the head of this file.
"""


def upload_list(folder: Path) -> list[tuple[str, int]]:
    """(name in the repository, bytes) of every file that an upload of the folder would make, sorted."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted((path.relative_to(folder).as_posix(), path.stat().st_size) for path in files)
