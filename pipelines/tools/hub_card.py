"""The card of a dataset repository on the Hugging Face Hub: of shards as they are, or of their export as Parquet."""

from __future__ import annotations

from pipelines.format.description import Description
from pipelines.tools.export import about

SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}
LARGEST = "10M<n<100M"


def parquet_card(description: Description, split: str) -> str:
    """README.md of an export as Parquet: what the Hub reads, what the columns are, and how to make sound of a row."""
    codec = description.codec
    configs = f"""configs:
- config_name: default
  data_files:
  - split: {split}
    path: data/{split}-*.parquet
"""
    body = f"""| column | meaning |
|---|---|
| `id` | of the cut in the corpus |
| `codes` | its tokens, uint16, {codec.token_rate:g} a second |
| `seconds` | of audio |
| `speaker`, `language`, `text` | of its supervisions, or null |
| `cut` | the Lhotse cut as JSON |

```python
import torch
from datasets import load_dataset
from tokenizer import Codec  # of the package focalstream

row = next(iter(load_dataset("THIS_REPOSITORY", split="{split}", streaming=True)))
codec = Codec.from_pretrained("{codec.name}")
assert codec.fingerprint == "{codec.fingerprint}"
wave = codec.decode(torch.tensor(row["codes"])[None])  # float32 [1, S] at codec.sample_rate_out
```
"""
    return _card(description, about(description), body, configs)


def shards_card(description: Description) -> str:
    """README.md of a dataset as `tokenize` wrote it, and how to make sound of a cut."""
    body = f"""Pairs of shards/cuts.*.jsonl.gz and shards/codes.*.tar are Lhotse Shar; each tar by itself is WebDataset.

```python
import torch
from huggingface_hub import snapshot_download
from pipelines.dataset import TokenDataset  # of the package focalstream
from tokenizer import Codec

dataset = TokenDataset(snapshot_download("THIS_REPOSITORY", repo_type="dataset"))
codec = Codec.from_pretrained("{description.codec.name}")
assert codec.fingerprint == "{description.codec.fingerprint}"
wave = codec.decode(torch.tensor(dataset.codes(0))[None])  # float32 [1, S] at codec.sample_rate_out
```
"""
    return _card(description, about(description, "tokenize", "dataset.json"), body)


def _card(description: Description, intro: str, body: str, configs: str = "") -> str:
    """`configs` are the lines of the head that say which files are the data."""
    totals = description.totals
    size = next((name for most, name in SIZES.items() if totals.cuts < most), LARGEST)
    return f"""---
{configs}size_categories:
- {size}
task_categories:
- text-to-speech
- automatic-speech-recognition
tags:
- speech-tokens
- focalstream
---

# Speech tokens

{intro}
{totals.quarantined:,} of {totals.planned:,} cuts could not be tokenized and are not here.

{body}
The rights to the recordings decide what may be done with the tokens, since they can be made audible again: add
`license:` to the head of this file if it is not there.
"""
