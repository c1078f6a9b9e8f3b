"""Published benchmarks as pairs of recordings, read from their published folders.

sWUGGY, sBLIMP     as in ZeroSpeech 2021 (lexical/dev, syntactic/dev): gold.csv beside WAV files; the rows of one id and
                   voice are a pair with `correct` 1 and 0
SALMon             sample_N_0.wav (the true one) and sample_N_1.wav; a folder for each part
spoken StoryCloze  file names start with distinct numbers; in their order each two are a pair, the true one first
                   (slamkit has sWUGGY and sBLIMP in this layout too)
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizer.errors import InputError

GOLD = "gold.csv"
OUT_OF_VOCABULARY = ("", "0", "oov", "nan")  # values of a word's frequency in sWUGGY


@dataclass(frozen=True)
class FilePair:
    """Two recordings. Pairs of one item count as one. `subset`: a subset that the item also counts in, or ""."""

    better: Path
    worse: Path
    item: str
    subset: str = ""


def read_benchmark(folder: Path) -> Iterator[tuple[str, list[FilePair]]]:
    """The tests in a folder: (name, pairs).

    Raises:
        InputError: the layout is unknown, or a file is missing.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected the folder of a benchmark")
    if (folder / GOLD).is_file():
        yield _label(folder), _gold_pairs(folder)
    elif names := sorted(path.name for path in folder.glob("*.wav")):
        if all(re.fullmatch(r"sample_\d+_\d+\.wav", name) for name in names):
            yield _label(folder), _salmon_pairs(folder, names)
        else:
            yield _label(folder), _numbered_pairs(folder, names)
    else:
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
        splits = [path / split for path in inside for split in ("", "dev", "test")]
        parts = [path for path in splits if (path / GOLD).is_file()]  # splits without labels are skipped
        parts = parts or [path for path in inside if next(path.glob("*.wav"), None)]
        if not parts:
            raise InputError(
                f"{folder}: not the layout of a benchmark; expected {GOLD} beside WAV files (ZeroSpeech 2021), "
                "sample_N_0.wav and sample_N_1.wav (SALMon), WAV files whose names start with a number, or a folder "
                "of such folders"
            )
        for part in parts:
            yield from read_benchmark(part)


def _label(folder: Path) -> str:
    """The folder's name, with its parent's name if it is a split."""
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}" if folder.name in ("dev", "test") else folder.name


def _gold_pairs(folder: Path) -> list[FilePair]:
    """ZeroSpeech 2021: one row per file: filename, id, voice, correct, and frequency (words) or type (sentences)."""
    sides: dict[tuple[str, str, str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    subsets: dict[tuple[str, str, str, str], str] = {}
    with open(folder / GOLD, encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), 2):
            try:
                key = (row.get("type") or "", row.get("subtype") or "", row["id"], row["voice"])
                sides[key][str(int(float(row["correct"])))].append(row["filename"])
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(
                    f"{folder / GOLD}, line {number}: {error}; expected the columns filename, id, voice and correct"
                ) from None
            if row["correct"].startswith("1"):
                frequency = row.get("frequency")
                known = frequency is not None and frequency.strip().lower() not in OUT_OF_VOCABULARY
                subsets[key] = row.get("type") or ("in vocabulary" if known else "")
    pairs = []
    for key, found in sides.items():
        if len(found["1"]) != len(found["0"]):
            raise InputError(
                f"{folder / GOLD}: id {key[2]}, voice {key[3]} has {len(found['1'])} correct and {len(found['0'])} "
                "incorrect files; expected the same number of both"
            )
        for better, worse in zip(found["1"], found["0"], strict=True):
            names = (_wav(folder, better), _wav(folder, worse))
            pairs.append(FilePair(*names, item=" ".join(key[:3]), subset=subsets[key]))
    return pairs


def _salmon_pairs(folder: Path, names: list[str]) -> list[FilePair]:
    numbers = sorted({int(name.split("_")[1]) for name in names})
    return [
        FilePair(_wav(folder, f"sample_{number}_0"), _wav(folder, f"sample_{number}_1"), str(number))
        for number in numbers
    ]


def _numbered_pairs(folder: Path, names: list[str]) -> list[FilePair]:
    found: dict[int, str] = {}
    for name in names:
        number = re.match(r"\d+", name)
        if number is None or int(number[0]) in found:
            raise InputError(
                f"{folder / name}: expected a name that starts with a distinct number, such as 0_..., 1_..."
            )
        found[int(number[0])] = name
    ordered = [folder / found[number] for number in sorted(found)]
    if len(ordered) % 2:
        raise InputError(f"{folder}: has {len(ordered)} WAV files, an odd number; expected pairs")
    return [
        FilePair(better, worse, str(number))
        for number, (better, worse) in enumerate(zip(ordered[::2], ordered[1::2], strict=True))
    ]


def _wav(folder: Path, stem: str) -> Path:
    path = folder / f"{stem.removesuffix('.wav')}.wav"
    if not path.is_file():
        raise InputError(f"{path}: is missing from its benchmark; copy or download the folder again")
    return path
