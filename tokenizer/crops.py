"""CUTS -> TRAINING BATCHES: random crops of a corpus decoded once into a memory map.

Which crops make batch `step` is a pure function of (seed, step), so a run resumes by its step number alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tokenizer.atomic import write_atomically
from tokenizer.errors import InputError


class Crops:
    """Random crops of equal length, weighted by duration.

    Args:
        samples: int16 [total], every cut's samples one after the other.
        ends: int64 [cuts], where each cut ends in `samples`.
        crop: samples of a crop; cuts shorter than this are padded with silence.
        seed: of the crops' places.
    """

    def __init__(self, samples: np.ndarray, ends: np.ndarray, crop: int, seed: int) -> None:
        self.samples, self.crop, self.seed = samples, crop, seed
        self.starts = np.concatenate([[0], ends[:-1]])
        self.ends = ends
        self.weights = np.cumsum(ends - self.starts) / ends[-1]

    def batch(self, step: int, size: int) -> Tensor:
        """float32 [size, crop] in [-1, 1]: batch number `step`."""
        rng = np.random.default_rng((self.seed, step))
        out = np.zeros((size, self.crop), dtype=np.float32)
        for row, cut in zip(out, np.searchsorted(self.weights, rng.random(size), side="right"), strict=True):
            start, end = int(self.starts[cut]), int(self.ends[cut])
            start += int(rng.integers(0, max(end - start - self.crop, 0) + 1))
            piece = self.samples[start : min(start + self.crop, end)]
            row[: len(piece)] = piece.astype(np.float32) / 32768
        return torch.from_numpy(out)


def decode_corpus(waves: Iterable[np.ndarray], identity: str, directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """Keep a corpus as 16-bit samples on disk, for fast random access; a second call finds the files and reuses them.

    Args:
        waves: float32 [S] mono at the codec's rate, one a cut; not touched when the files are there.
        identity: what the files are of (input and rate); files of another identity are refused.
        directory: where samples.int16 and corpus.json go (115 MB per hour at 16 kHz).

    Returns:
        int16 [total], memory-mapped, and int64 [cuts], the end of each cut in it.

    Raises:
        InputError: when there is no audio, or the directory holds another corpus.
    """
    directory.mkdir(parents=True, exist_ok=True)
    record, data = directory / "corpus.json", directory / "samples.int16"
    if not record.exists():
        ends, total = [], 0
        with open(data, "wb") as file:
            for wave in tqdm(waves, desc="decoding the corpus once", unit="cut", disable=None):
                samples = np.rint(np.clip(wave, -1, 1) * 32767).astype("<i2")
                file.write(samples.tobytes())
                total += len(samples)
                ends.append(total)
            file.flush()
            os.fsync(file.fileno())  # before the record that vouches for it
        if not total:
            raise InputError("the training manifest holds no audio")
        write_atomically(record, json.dumps({"identity": identity, "ends": ends}).encode())
    stored = json.loads(record.read_text())
    if stored["identity"] != identity:
        raise InputError(f"{directory}: holds the decoded audio of another manifest or rate; use another --out")
    return np.memmap(data, dtype="<i2", mode="r"), np.array(stored["ends"], dtype=np.int64)
