"""Which cuts validate: a share of the recordings or speakers, and the sources that are looked at one by one.

Neighbouring cuts of one recording share voice, room and topic. If one is held out and another is trained on, the
held-out loss comes out too low. So whole recordings are held out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from pipelines.dataset.batches import split_held_out
from pipelines.dataset.cache import MissingFile
from pipelines.dataset.token_dataset import TokenDataset
from slm.training.settings import TrainSettings
from tokenizer.errors import InputError


def split(
    dataset: TokenDataset, held_out: TokenDataset | None, settings: TrainSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of cuts for training, of `dataset`, and for validation, of `held_out` or else of `dataset`, sorted.

    Raises:
        InputError: there is only one recording (speaker), or the shards do not say which cut belongs to which.
    """
    if held_out is not None:
        return np.arange(len(dataset)), np.arange(len(held_out))
    by = settings.held_out_by
    if by == "cut" or len(dataset) < 2:
        return split_held_out(len(dataset), settings.held_out_fraction, settings.seed)
    try:
        groups = dataset.kept(f"{by}s-1", lambda: {"groups": groups_of(dataset.cuts(), by)})["groups"]
    except MissingFile as error:
        raise InputError(f"{error}; or name --held-out DATASET, or give --held-out-by cut") from None
    count = int(groups.max()) + 1
    if count < 2:
        raise InputError(
            f"all {len(dataset)} cuts are of one {by}, of which none can be held out; name --held-out DATASET, or give "
            "--held-out-by cut"
        )
    return split_groups(groups, settings.held_out_fraction, settings.seed)


def split_groups(groups: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`split_held_out` of whole groups: `groups` has the number of each cut's, from 0 on in order of appearance."""
    count = int(groups.max()) + 1
    is_held_out = np.zeros(count, bool)
    is_held_out[split_held_out(count, fraction, seed)[1]] = True
    chosen = is_held_out[groups]
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def groups_of(cuts: Iterable[dict[str, Any]], by: str) -> np.ndarray:
    """The number of each cut's recording or speaker, int64 [N], counted from 0 in order of appearance.

    A cut without a speaker counts by its recording, one without a recording (a mix) by itself.
    """
    numbers: dict[Any, int] = {}
    found = []
    for index, cut in enumerate(cuts):
        said = (cut.get("supervisions") or [{}])[0]
        name: Any = ("speaker", said.get("speaker")) if by == "speaker" else ("speaker", None)
        if not name[1]:
            recording = cut.get("recording") or {}
            name = ("recording", recording.get("id") or said.get("recording_id") or index)
        found.append(numbers.setdefault(name, len(numbers)))
    return np.array(found, np.int64)


def sources_of(places: Sequence[str], begins: Sequence[int], cuts: np.ndarray) -> dict[str, np.ndarray]:
    """The cuts of each dataset by a short name, its last folders as far as they differ; without those that have none.

    Args:
        places: folders or URLs.
        begins: the first cut of each, then the number of all cuts.
        cuts: int64 [n], sorted.
    """
    parts = np.split(cuts, np.searchsorted(cuts, begins[1:-1]))
    return {name: part for name, part in zip(short_names(places), parts, strict=True) if len(part)}


def short_names(places: Sequence[str]) -> list[str]:
    """The shortest ends of paths that differ; the whole path and a number where a place is there twice."""
    paths = [PurePosixPath(place.rstrip("/")).parts for place in places]
    for length in range(1, max(map(len, paths), default=1) + 1):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{place} {number}" for number, place in enumerate(places, 1)]
