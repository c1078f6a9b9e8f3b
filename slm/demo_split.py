"""Which of the demo's cuts train the language model, which are held out, and which of those are shown."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.audio import CutError, expected_samples, read_resampled
from pipelines.manifests import SourceCut, find_inputs, read_cuts
from pipelines.plan import PlannedCut, duration
from tokenizer.errors import InputError

HELD_OUT_EVERY = 10  # where the cuts do not say, every tenth is held out
CLIP_SECONDS = (1.5, 12.0)  # cuts shorter or longer than this make poor examples


@dataclass(frozen=True)
class Split:
    """Cuts in the order of the manifest. `rule` says, in words, how they were divided."""

    train: Sequence[SourceCut]
    heldout: Sequence[SourceCut]
    rule: str


def split_data(data: str) -> Split:
    """Divide a manifest or a folder of audio.

    Where every cut has `custom.subset`, that decides ("heldout" is held out); otherwise every tenth cut is held out.

    Raises:
        InputError: nothing is there, one of the two parts would be empty, or the audio lies inside a Shar folder.
    """
    cuts = list(read_cuts(find_inputs(data)))
    if any(source.audio is not None for source in cuts):
        raise InputError(
            f"{data}: its audio lies inside Shar tars, and the demo divides manifests; give the manifest or the folder "
            "of audio files it was made from"
        )
    subsets = [(source.cut.get("custom") or {}).get("subset") for source in cuts]
    if all(subset is not None for subset in subsets):
        chosen = [subset == "heldout" for subset in subsets]
        rule = "the manifest says which cuts are held out"
    else:
        chosen = [index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 for index in range(len(cuts))]
        chosen[-1] = chosen[-1] or not any(chosen)
        rule = f"every {HELD_OUT_EVERY}th cut is held out"
    split = Split(
        train=[source for source, held in zip(cuts, chosen, strict=True) if not held],
        heldout=[source for source, held in zip(cuts, chosen, strict=True) if held],
        rule=rule,
    )
    if not split.train or not split.heldout:
        raise InputError(
            f"{data}: {len(split.train)} cuts to train on and {len(split.heldout)} held out; expected at least one of "
            "each: give at least two cuts"
        )
    return split


def write_manifest(path: Path, cuts: Sequence[SourceCut]) -> None:
    """Write cuts as a Lhotse manifest (.jsonl.gz); the same cuts give the same bytes."""
    lines = "".join(json.dumps(source.cut) + "\n" for source in cuts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines.encode("ascii"), mtime=0))


def pick_clips(cuts: Sequence[SourceCut], count: int) -> list[SourceCut]:
    """Up to `count` cuts to show: those of a pleasant length first, and as many speakers as there are."""
    shortest, longest = CLIP_SECONDS
    ranks: dict[int, tuple[bool, int]] = {}
    seen: dict[str, int] = {}
    for index, source in enumerate(cuts):
        turn = seen[speaker(source.cut)] = seen.get(speaker(source.cut), -1) + 1
        ranks[index] = (not shortest <= duration(source.cut) <= longest, turn)
    return [cuts[index] for index in sorted(ranks, key=ranks.__getitem__)[:count]]


def pick_prompt(cuts: Sequence[SourceCut], seconds: float) -> SourceCut:
    """The first cut of at least `seconds`, or else the longest."""
    long_enough = (source for source in cuts if duration(source.cut) >= seconds)
    return next(long_enough, None) or max(cuts, key=lambda source: duration(source.cut))


def load_wave(source: SourceCut, sample_rate: int) -> np.ndarray:
    """The cut's audio as the tokenizer hears it: mono float32 [S] at `sample_rate` Hz.

    Raises:
        InputError: the audio is missing or unreadable.
    """
    samples = expected_samples(source.cut, duration(source.cut), sample_rate)
    try:
        return np.concatenate([*read_resampled(PlannedCut(source.cut, source.cut["id"]), samples, sample_rate)])
    except (CutError, OSError, RuntimeError) as error:  # libsndfile's errors are RuntimeErrors
        raise InputError(f"cut {source.cut['id']}: {error}; mend or remove this cut") from error


def speaker(cut: dict[str, Any]) -> str:
    """The speaker of the cut's first supervision; empty where there is none."""
    return _first_supervision(cut).get("speaker") or ""


def text(cut: dict[str, Any]) -> str:
    """What is said in the cut; empty where that is not known."""
    return _first_supervision(cut).get("text") or ""


def _first_supervision(cut: dict[str, Any]) -> dict[str, Any]:
    return next(iter(cut.get("supervisions") or []), {})
