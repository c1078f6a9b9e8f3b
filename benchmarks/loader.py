"""Tokens a second that ways of loading training data pack into batches, on one core.

    python benchmarks/loader.py [--tokens 20e6] [--lengths ../shared/speech/train.jsonl.gz] [--rows 64]

Writes a dataset of random codes with this project's own shard writer, its cuts as long as those of a Lhotse manifest of
speech (or log-normal, median 3.5 s), and reads it, in alternation, by: the project's loader over the tars and over the
packed files; the webdataset pipeline of docs/language-model.md; and random crops of one memory-mapped uint16 file made
beforehand, as nanoGPT reads. All make int64 [rows, row_tokens + 1]; only the project's loader also says each token's
document and position, in two more such arrays. Files are in the page cache, and seconds are those that the process had
the core, so that work beside it counts little.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.bulk.plan import Sharding
from pipelines.dataset.batches import PackedBatches
from pipelines.dataset.token_dataset import TokenDataset
from pipelines.format.description import CodecEntry
from pipelines.format.layout import Layout
from pipelines.sources.cuts import PlannedCut
from pipelines.tools.rewrite import DatasetWriter, rewriting
from slm.training.loaders import FRAMING

CODEBOOK, TOKEN_RATE = 4096, 50.0
CODEC = CodecEntry(
    name="random",
    fingerprint="0" * 64,
    codebook_size=CODEBOOK,
    bits_per_token=12,
    token_rate=TOKEN_RATE,
    sample_rate=16000,
    hop_samples=320,
    first_samples=1,
)
MANUAL = Path(__file__).parents[1] / "docs" / "language-model.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=20e6, help="of the dataset")
    parser.add_argument("--lengths", help="Lhotse manifest (jsonl.gz) that the lengths of the cuts are drawn from")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--row-tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=7, help="in alternation; the median counts")
    parser.add_argument("--folder", help="keeps the dataset there, or reads the one that is there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        if not (folder / "tokens" / "dataset.json").exists():
            write_dataset(folder / "tokens", drawn_lengths(args.lengths, int(args.tokens)))
        compare(folder, args.rows, args.row_tokens, args.repeats)


def drawn_lengths(manifest: str | None, tokens: int) -> np.ndarray:
    """Tokens of each cut, until there are enough of them."""
    rng = np.random.default_rng(0)
    if manifest:
        with gzip.open(manifest, "rt", encoding="utf-8") as lines:
            known = np.array([-(-json.loads(line)["duration"] * TOKEN_RATE // 1) for line in lines], np.int64)
        lengths = rng.choice(known, tokens // int(known.min()))
    else:
        lengths = rng.lognormal(np.log(3.5 * TOKEN_RATE), 0.5, tokens // 100).astype(np.int64) + 1
    return lengths[: np.searchsorted(np.cumsum(lengths), tokens)]


def write_dataset(out: Path, lengths: np.ndarray) -> None:
    """A dataset of random codes, packed too, and the same tokens as one flat file."""
    began, rng, layout = time.perf_counter(), np.random.default_rng(1), Layout(out)
    out.mkdir(parents=True)
    with rewriting(layout), open(out.parent / "flat.bin", "wb") as flat:
        writer = DatasetWriter(layout, CODEC, {"random": True}, Sharding(hours=5.0, pack=True))
        for i, length in enumerate(lengths.tolist()):
            codes = rng.integers(0, CODEBOOK, length).astype(np.uint16)
            cut = {"id": f"speaker{i % 997}-{i:08d}", "start": 0.0, "duration": length / TOKEN_RATE, "type": "MonoCut"}
            writer.add(PlannedCut({**cut, "channel": 0, "supervisions": []}, member=""), codes)
            flat.write(np.concatenate([[FRAMING.begin], codes + FRAMING.first_code, [FRAMING.end]]).astype("<u2"))
        totals = writer.close().totals
    seconds = time.perf_counter() - began
    print(f"{totals.cuts:,} cuts, {totals.tokens:,} tokens, {totals.hours:.0f} h; written in {seconds:.0f} s")


def compare(folder: Path, rows: int, row_tokens: int, repeats: int) -> None:
    tokens = folder / "tokens"
    readers: dict[str, Iterator[Any]] = {
        "ours, tars": steps(PackedBatches(TokenDataset(tokens, packed=False), FRAMING, rows, row_tokens, seed=0)),
        "ours, packed": steps(PackedBatches(TokenDataset(tokens, packed=True), FRAMING, rows, row_tokens, seed=0)),
        "flat file, random crops": random_crops(folder / "flat.bin", rows, row_tokens),
        "webdataset + numpy": iter(documented()(tokens, rows, row_tokens).repeat()),
    }
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for repeat in range(repeats + 1):  # the first fills the page cache
        for name, reader in readers.items():
            batches = 3 if name == "webdataset + numpy" else 60
            began = time.process_time()
            for _ in range(batches):
                next(reader)
            if repeat:
                rates[name].append(batches * rows * row_tokens / (time.process_time() - began) / 1e6)
    print(
        f"million tokens a second of CPU time in batches of {rows} x {row_tokens}, median (least to most) of {repeats}"
    )
    for name, found in rates.items():
        print(f"  {name:<24} {statistics.median(found):7.1f}  ({min(found):.1f} to {max(found):.1f})")


def steps(batches: PackedBatches) -> Iterator[Any]:
    step = 0
    while True:
        yield batches.batch(step)
        step += 1


def random_crops(path: Path, rows: int, row_tokens: int) -> Iterator[np.ndarray]:
    """nanoGPT's `get_batch`, but for one array in place of two."""
    rng, data = np.random.default_rng(0), np.memmap(path, np.uint16, "r")
    while True:
        begins = rng.integers(0, len(data) - row_tokens, rows)
        yield np.stack([data[begin : begin + row_tokens + 1].astype(np.int64) for begin in begins])


def documented() -> Callable[..., Any]:
    """`webdataset_batches`, as the manual has it."""
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", MANUAL.read_text(), re.S) if "wds." in block)
    namespace: dict[str, Any] = {}
    exec(code[: code.index("\nfor tokens in")], namespace)
    return namespace["webdataset_batches"]


if __name__ == "__main__":
    main()
