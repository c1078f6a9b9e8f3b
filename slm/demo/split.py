"""The demo's cuts: which ones train the language model, which are held out, and which of those are shown."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.sources.audio import read_wave
from pipelines.sources.cuts import duration
from pipelines.sources.manifests import SourceCut, find_inputs, read_cuts
from tokenizer.errors import InputError

HELD_OUT_EVERY = 10  # if the cuts do not say, every tenth is held out
PROBE_RATE = 16_000  # Hz, for the test whether a cut can be read
CLIP_SECONDS = (1.5, 12.0)  # range of lengths for good examples


@dataclass(frozen=True)
class Split:
    """Cuts in the order of the manifest. `rule` describes how they were split."""

    train: Sequence[SourceCut]
    held_out: Sequence[SourceCut]
    rule: str


def split_data(data: str) -> Split:
    """Split a manifest or a folder of audio.

    If every cut has `custom.subset`, cuts with "heldout" are held out. Otherwise every tenth cut that can be read is
    held out, or the last readable cut if there is none. Other unreadable cuts are kept, for the tokenizer to report.

    Raises:
        InputError: there are no cuts, no cut of one of the two parts can be read, or the audio is inside a Shar folder.
    """
    cuts = list(read_cuts(find_inputs(data)))
    if any(source.audio is not None for source in cuts):
        raise InputError(
            f"{data}: its audio is inside Shar tars, and the demo splits manifests; give the original manifest or "
            "folder of audio files"
        )
    subsets = [(source.cut.get("custom") or {}).get("subset") for source in cuts]
    if all(subset is not None for subset in subsets):
        chosen = [subset == "heldout" for subset in subsets]
        rule = "the manifest says which cuts are held out"
    else:
        chosen, rule = choose_heldout(cuts)
    split = Split(
        train=[source for source, held in zip(cuts, chosen, strict=True) if not held],
        held_out=[source for source, held in zip(cuts, chosen, strict=True) if held],
        rule=rule,
    )
    for part, name in ((split.train, "to train on"), (split.held_out, "held out")):
        if not any(readable(source) for source in part):
            raise InputError(
                f"{data}: of {len(cuts)} cuts, {len(part)} are {name}, and none of these can be read; expected a "
                "readable cut in each part: give at least two cuts"
            )
    return split


def choose_heldout(cuts: Sequence[SourceCut]) -> tuple[list[bool], str]:
    """Which cuts to hold out if the manifest does not say, and the rule in words."""
    tenths = range(HELD_OUT_EVERY - 1, len(cuts), HELD_OUT_EVERY)
    held_out = [index for index in tenths if readable(cuts[index])]
    if held_out:
        rule = f"every {HELD_OUT_EVERY}th cut is held out"
        rule += " where it can be read" if len(held_out) < len(tenths) else ""
    else:
        held_out = [next((index for index in reversed(range(len(cuts))) if readable(cuts[index])), len(cuts) - 1)]
        rule = (
            "the last cut is held out" if held_out == [len(cuts) - 1] else "the last cut that can be read is held out"
        )
    chosen = set(held_out)
    return [index in chosen for index in range(len(cuts))], rule


def readable(source: SourceCut) -> bool:
    """Whether all audio of a cut can be read."""
    try:
        read_wave(source, PROBE_RATE)
    except InputError:
        return False
    return True


def write_manifest(path: Path, cuts: Sequence[SourceCut]) -> None:
    """Write cuts as a Lhotse manifest (.jsonl.gz); the same cuts give the same bytes."""
    lines = "".join(json.dumps(source.cut) + "\n" for source in cuts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines.encode("ascii"), mtime=0))


def pick_clips(cuts: Sequence[SourceCut], count: int) -> list[SourceCut]:
    """Up to `count` cuts to show: those with a good length first, from as many speakers as possible."""
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


def speaker(cut: dict[str, Any]) -> str:
    """The speaker of the cut's first supervision, or ""."""
    return _first_supervision(cut).get("speaker") or ""


def text(cut: dict[str, Any]) -> str:
    """The text of the cut's first supervision, or ""."""
    return _first_supervision(cut).get("text") or ""


def _first_supervision(cut: dict[str, Any]) -> dict[str, Any]:
    return next(iter(cut.get("supervisions") or []), {})
