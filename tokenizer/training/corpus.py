"""CUTS -> CORPUS: every cut decoded once into one memory-mapped file, beside it where each ends and what is said."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tokenizer.atomic import write_atomically
from tokenizer.errors import InputError


@dataclass(frozen=True)
class Corpus:
    """Decoded speech.

    Attributes:
        samples: int16 [total], every cut's samples one after the other.
        ends: int64 [cuts], where each cut ends in `samples`.
        texts: what is said in each cut; "" where that is not known.
    """

    samples: np.ndarray
    ends: np.ndarray
    texts: tuple[str, ...]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [cuts], samples of each cut."""
        return np.diff(self.ends, prepend=0)

    def read(self, cut: int, begin: int, samples: int) -> np.ndarray:
        """float32 [at most `samples`] of a cut, from its sample `begin` on, in [-1, 1]."""
        end = int(self.ends[cut])
        start = end - int(self.lengths[cut]) + begin
        return self.samples[start : min(start + samples, end)].astype(np.float32) / 32768


def decode_corpus(cuts: Iterable[tuple[np.ndarray, str]], identity: str, directory: Path) -> Corpus:
    """Keep a corpus as 16-bit samples on disk, for fast random access; a second call finds the files and reuses them.

    Args:
        cuts: float32 [S] mono at the codec's output rate and the text, of each cut; untouched when the files are there.
        identity: what the files are of (input and rate); files of another identity are refused.
        directory: where samples.int16 and corpus.json go (115 MB per hour at 16 kHz).

    Raises:
        InputError: when there is no audio, or the directory holds another corpus.
    """
    directory.mkdir(parents=True, exist_ok=True)
    record, data = directory / "corpus.json", directory / "samples.int16"
    if not record.exists():
        ends, texts, total = [], [], 0
        with open(data, "wb") as file:
            for wave, text in tqdm(cuts, desc="decoding the corpus once", unit="cut", disable=None):
                samples = np.rint(np.clip(wave, -1, 1) * 32767).astype("<i2")
                file.write(samples.tobytes())
                total += len(samples)
                ends.append(total)
                texts.append(text)
            file.flush()
            os.fsync(file.fileno())  # before the record that vouches for it
        if not total:
            raise InputError("the training manifest holds no audio")
        write_atomically(record, json.dumps({"identity": identity, "ends": ends, "texts": texts}).encode())
    stored = json.loads(record.read_text())
    if stored["identity"] != identity:
        raise InputError(f"{directory}: holds the decoded audio of another manifest or rate; use another --out")
    places = np.array(stored["ends"], dtype=np.int64)
    return Corpus(np.memmap(data, dtype="<i2", mode="r"), places, tuple(stored["texts"]))
