"""Tests of speaker consistency: true against swapped continuations, from any dataset with speaker labels.

As in SALMon (arXiv 2409.07437), the first part of a recording is followed by its own second part or by that of another
speaker (gender, background). The true continuation also matches in everything else, so there is a second test: both
continuations come from other recordings, one of them by the same speaker, and only the speaker distinguishes them.
Either the audio is joined, as in SALMon, or the codes, which needs no audio.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from pipelines.dataset.cache import MissingFile
from pipelines.dataset.token_dataset import TokenDataset
from slm.evaluation.pairs import Pair
from tokenizer import Codec
from tokenizer.errors import InputError

FIELDS = ("speaker", "gender", "background")
FIELDS_NAMED = 8  # at most, in an error message
OWN_FIELDS = {"codes", "cut_id"}  # custom fields that `tokenize` adds, different for each cut
TRIES = 1000  # draws until a cut fits


@dataclass(frozen=True)
class SwapOptions:
    """Settings of the pairs.

    Attributes:
        pairs: pairs of each test, the same number for each speaker (gender, background).
        prompt_seconds, continuation_seconds: at most; each is half of the recording if that is shorter.
        min_seconds: of either part at least.
        hold: a field that the swapped recording must share with the first, such as "source"; empty: none.
        seed: of the draws.
    """

    pairs: int = 200
    prompt_seconds: float = 3.0
    continuation_seconds: float = 3.0
    min_seconds: float = 1.0
    hold: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise InputError(f"pairs is {self.pairs}; expected at least 1")
        if not 0 < self.min_seconds <= min(self.prompt_seconds, self.continuation_seconds) < math.inf:
            raise InputError(
                f"prompt_seconds {self.prompt_seconds}, continuation_seconds {self.continuation_seconds}: expected at "
                f"least min_seconds, {self.min_seconds}"
            )


class Swap(NamedTuple):
    """Indices of three cuts: the first half of `first` is followed by the second half of one of the others."""

    first: int
    better: int
    worse: int


@dataclass(frozen=True)
class Swaps:
    """The two tests of one field."""

    true: list[Swap]  # the true continuation against one by another speaker
    matched: list[Swap]  # another recording of the same speaker against one of another speaker


def cut_fields(dataset: TokenDataset) -> Iterator[dict[str, Any]]:
    """Speaker, gender and custom fields of each cut of a dataset, in order."""
    for cut in dataset.cuts():
        said = (cut.get("supervisions") or [{}])[0]
        fields = {**(cut.get("custom") or {}), **(said.get("custom") or {})}
        yield {**fields, "speaker": said.get("speaker"), "gender": said.get("gender")}


def check_hold(said: Sequence[dict[str, Any]], hold: str) -> None:
    """Raise InputError if no cut has the field that swaps must keep.

    Args:
        said: `cut_fields` of each cut.
        hold: the field.
    """
    names = sorted({name for fields in said for name, value in fields.items() if value is not None} - OWN_FIELDS)
    if hold not in names:
        known = ", ".join(names[:FIELDS_NAMED])
        remedy = f"expected a field that cuts have, such as {known}" if names else "omit it"
        raise InputError(f"--hold is '{hold}', a field that no cut has; {remedy}")


def make_swaps(dataset: TokenDataset, said: Sequence[dict[str, Any]], field: str, options: SwapOptions) -> Swaps:
    """Choose the cuts of one field's tests.

    Args:
        dataset: the tokenized cuts.
        said: `cut_fields` of each.
        field: "speaker", "gender", or any custom field.
        options: the settings of the pairs.

    Raises:
        InputError: fewer than two speakers (genders, ...) have recordings that are long enough.
    """
    least = math.ceil(options.min_seconds * dataset.token_rate)
    usable = [
        i
        for i, fields in enumerate(said)
        if dataset.lengths[i] >= 2 * least
        and fields.get(field) is not None
        and (not options.hold or fields.get(options.hold) is not None)
    ]
    values = [str(fields.get(field)) for fields in said]
    groups: dict[str, list[int]] = defaultdict(list)
    held: dict[str, list[int]] = defaultdict(list)
    for i in usable:
        groups[values[i]].append(i)
        held[str(said[i].get(options.hold))].append(i)
    if len(groups) < 2:
        held_too = f" and a {options.hold}" if options.hold else ""
        raise InputError(
            f"{len(groups)} {field}(s) with recordings of at least {2 * options.min_seconds:g} s{held_too}; "
            "expected two or more"
        )
    swaps = Swaps([], [])
    names = sorted(groups)
    for number in range(options.pairs):
        name = names[number % len(names)]
        first = next(_drawn(groups[name], options.seed, number, 0))
        pool = held[str(said[first].get(options.hold))]
        other = next((i for i in _drawn(pool, options.seed, number, 1) if values[i] != name), None)
        same = next((i for i in _drawn(pool, options.seed, number, 2) if values[i] == name and i != first), None)
        if other is None:
            continue
        swaps.true.append(Swap(first, first, other))
        if same is not None:
            swaps.matched.append(Swap(first, same, other))
    if not swaps.true:
        raise InputError(f"no {field} can be swapped with another one of the same {options.hold}")
    return swaps


def chosen_swaps(dataset: TokenDataset, options: SwapOptions | str, missing: dict[str, str]) -> dict[str, Swaps]:
    """field -> the cuts of its tests, for each field that has tests.

    Args:
        dataset: the tokenized cuts.
        options: the settings of the pairs, or the reason why there are none.
        missing: what is not measured -> reason; fields without tests are added.

    Raises:
        InputError: no cut has the field to hold, or a file of cuts is damaged.
    """
    all_tests = f"{', '.join(FIELDS)} consistency"
    if isinstance(options, str):
        missing[all_tests] = options
        return {}
    try:
        said = list(cut_fields(dataset))
    except MissingFile as error:
        missing[all_tests] = str(error)
        return {}
    if options.hold:
        check_hold(said, options.hold)
    found = {}
    for name in FIELDS:
        try:
            found[name] = make_swaps(dataset, said, name, options)
        except InputError as error:
            missing[f"{name} consistency"] = str(error)
    return found


def join_codes(dataset: TokenDataset, swap: Swap, options: SwapOptions) -> Pair:
    """The pair of a swap, from the codes of whole recordings."""
    (start, better, worse) = _joined([dataset.codes(i) for i in swap], dataset.token_rate, dataset, swap, options)
    return Pair(np.concatenate((start, better)), np.concatenate((start, worse)), prompt=len(start))


def join_waves(
    dataset: TokenDataset, swap: Swap, options: SwapOptions, codec: Codec, wave_of: Callable[[int], np.ndarray]
) -> Pair:
    """The pair of a swap, joined as audio, then encoded; `wave_of` returns float32 [S] at `sample_rate_in`."""
    rate = codec.sample_rate_in
    (start, better, worse) = _joined([wave_of(i) for i in swap], rate, dataset, swap, options)
    waves = (torch.from_numpy(np.concatenate((start, end))) for end in (better, worse))
    codes = [codec.encode(wave)[0].cpu().numpy() for wave in waves]
    return Pair(codes[0], codes[1], prompt=round(len(start) * codec.token_rate / rate))


def _joined(
    rows: list[np.ndarray], rate: float, dataset: TokenDataset, swap: Swap, options: SwapOptions
) -> tuple[np.ndarray, ...]:
    """The end of the first row's first half, and the second halves of the others at one length; `rate` of the rows."""
    halves = [round(dataset.lengths[i] // 2 * rate / dataset.token_rate) for i in swap]
    start = rows[0][: halves[0]][-round(options.prompt_seconds * rate) :]
    ends = [row[half:] for row, half in zip(rows[1:], halves[1:], strict=True)]
    shared = min(round(options.continuation_seconds * rate), *map(len, ends))
    return (start, *(end[:shared] for end in ends))


def _drawn(among: Sequence[int], *key: int) -> Iterator[int]:
    """Random draws, a function of the key alone (NumPy guarantees that raw words do not change between versions)."""
    for word in np.random.Philox(np.random.SeedSequence(key)).random_raw(TRIES).tolist():
        yield among[word % len(among)]
