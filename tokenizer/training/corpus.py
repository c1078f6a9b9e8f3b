"""CUTS -> CORPUS: every cut decoded once into one memory-mapped file, beside it where each ends and what is said."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tokenizer.errors import InputError
from tokenizer.files import write_atomically


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

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [cuts], samples of each cut."""
        return np.diff(self.ends, prepend=0)

    def read(self, cut: int, begin: int, samples: int) -> np.ndarray:
        """float32 [at most `samples`] of a cut, from its sample `begin` on, in [-1, 1]."""
        end = int(self.ends[cut])
        start = end - int(self.lengths[cut]) + begin
        return self.samples[start : min(start + samples, end)].astype(np.float32) / 32768


def decode_corpus(cuts: Iterable[tuple[np.ndarray, str]], identity: str, directory: Path, source: str) -> Corpus:
    """Keep a corpus as 16-bit samples on disk, for fast random access; a second call finds the files and reuses them.

    Args:
        cuts: float32 [S] mono at the codec's output rate and the text, of each cut; untouched when the files are there.
        identity: what the files are of (input and rate); files of another identity are refused.
        directory: where samples.int16 and corpus.json go (115 MB per hour at 16 kHz).
        source: what to call the input in error messages.

    Raises:
        InputError: when there is no audio, or the directory holds another corpus or a damaged one.
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
            raise InputError(f"{source}: holds no audio; expected some minutes of speech at least")
        write_atomically(record, json.dumps({"identity": identity, "ends": ends, "texts": texts}).encode())
    stored = _read_record(record)
    if stored["identity"] != identity:
        raise InputError(f"{directory}: holds the decoded audio of another manifest or rate; use another --out")
    places = np.array(stored["ends"], dtype=np.int64)
    if not data.is_file() or data.stat().st_size != places[-1] * 2:
        raise InputError(f"{data}: is not the audio that corpus.json describes; delete {directory} to decode it again")
    return Corpus(np.memmap(data, dtype="<i2", mode="r"), places, tuple(stored["texts"]))


def _read_record(record: Path) -> dict[str, Any]:
    """What corpus.json says. Raises InputError for one that is damaged or of an older version."""
    try:
        stored = json.loads(record.read_text())
    except ValueError:
        stored = None
    if not isinstance(stored, dict) or not {"identity", "ends", "texts"} <= set(stored):
        raise InputError(f"{record}: is damaged, or of an older version; delete {record.parent} to decode it again")
    return stored
