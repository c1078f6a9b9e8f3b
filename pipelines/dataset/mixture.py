"""Weighted mixtures: each row of a step comes from one part, which follows from the row's number.

Of every `BLOCK_ROWS` rows each part has exactly its share, in an order drawn from (seed, number of the block). The rows
of a part are those that it would have alone, in the same order, so exact resuming needs one integer here too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.dataset.batches import Batch, PackedBatches, ranks_rows
from pipelines.dataset.epochs import shuffled
from tokenizer.errors import InputError
from tokenizer.parsed import read_yaml_file

BLOCK_ROWS = 10_000
MIXTURE_STREAM = 2  # keeps this draw apart from those of epochs and held-out cuts


@dataclass(frozen=True)
class WeightedData:
    """Datasets as a command line names them.

    Attributes:
        places: folders or URLs.
        weights: of each, above 0; None: no mixture, but all of them as one dataset.
        file: the YAML file that named them, for messages.
    """

    places: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    file: str | None = None

    def check_cuts(self, begins: Sequence[int]) -> None:
        """Raise InputError for a dataset with a weight but without cuts, or if none has cuts.

        Args:
            begins: the first cut of each dataset, then the number of all cuts (`TokenDataset.folder_begins`).
        """
        for place, first, last in zip(self.places, begins[:-1], begins[1:], strict=True):
            if first == last and (self.weights is not None or not begins[-1]):
                where = place if self.file is None else f"{self.file}: {place}"
                raise InputError(f"{where}: this dataset has no cuts; leave it out, or tokenize some audio first")


class MixedBatches:
    """The batches of one rank, of several parts by weight.

    Args:
        parts: with the same `row_tokens`; for parts that share cuts give each its own seed.
        weights: of each part, relative to their sum.
        rows: rows of a step over all ranks.
        seed: of the order of the parts.
        rank, world_size: this process among those that share each step.

    Raises:
        InputError: a weight that is not above 0, or too small to get a row; rows that the ranks cannot share.
    """

    def __init__(
        self,
        parts: Sequence[PackedBatches],
        weights: Sequence[float],
        rows: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert len({part.row_tokens for part in parts}) == 1
        self._parts = list(parts)
        self._shares = shares(weights)
        self._seed = seed
        self._rows, self._rank, self._world_size = rows, rank, world_size
        ranks_rows(rows, 0, rank, world_size)  # refuses what cannot be divided before the first step
        self.row_tokens = parts[0].row_tokens
        self.tokens_per_epoch = sum(part.tokens_per_epoch for part in parts)

    def batch(self, step: int) -> Batch:
        """The rows of this rank at a step (counted from 0). Raises as `PackedBatches.batch` does."""
        return self.rows(*ranks_rows(self._rows, step, self._rank, self._world_size))

    def rows(self, first: int, last: int) -> Batch:
        """Rows first .. last - 1 of the mixture. Documents are numbered part by part: compare them within a row."""
        batch = Batch(*np.empty((3, last - first, self.row_tokens + 1), np.int64))
        parts, begins = self._parts_of(first, last)
        for number, part in enumerate(self._parts):
            mine = np.flatnonzero(parts == number)
            if len(mine):
                rows = part.rows(begins[number], begins[number] + len(mine))
                for field, values in zip(batch, rows, strict=True):
                    field[mine] = values
        return batch

    def _parts_of(self, first: int, last: int) -> tuple[np.ndarray, list[int]]:
        """The part of each row, [last - first], and how many rows of each part come before `first`."""
        block, skipped = divmod(first, BLOCK_ROWS)
        blocks = range(block, -(-last // BLOCK_ROWS))
        in_order = np.repeat(np.arange(len(self._parts)), self._shares)
        parts = np.concatenate([in_order[shuffled(BLOCK_ROWS, self._seed, n, MIXTURE_STREAM)] for n in blocks])
        before = block * self._shares + np.bincount(parts[:skipped], minlength=len(self._parts))
        return parts[skipped : skipped + last - first], before.tolist()


def shares(weights: Sequence[float]) -> np.ndarray:
    """Rows of each part in a block, int64: in all `BLOCK_ROWS`, by largest remainder. Raises InputError."""
    if not all(0 < weight < math.inf for weight in weights):
        raise InputError(f"the weights of the datasets are {list(weights)}; expected numbers above 0")
    relative = np.array(weights) / max(weights)  # a sum of large ones would not be finite
    exact = relative / relative.sum() * BLOCK_ROWS
    rows = np.floor(exact).astype(np.int64)
    rows[np.argsort(rows - exact, kind="stable")[: BLOCK_ROWS - rows.sum()]] += 1
    if not rows.all():
        raise InputError(
            f"weight {weights[int(rows.argmin())]} of {sum(weights):g} is less than one row in {BLOCK_ROWS:,}; give a "
            "larger one, or leave that dataset out"
        )
    return rows


def read_data(arguments: Sequence[str | Path]) -> WeightedData:
    """What `--data` names: places, `PLACE:WEIGHT`, or one YAML file that maps places to weights.

    Raises:
        InputError: some have a weight and some have none, or the file is no such map.
    """
    if len(arguments) == 1 and str(arguments[0]).endswith((".yaml", ".yml")):
        return _read_file(Path(arguments[0]))
    places, weights = zip(*map(_with_weight, arguments), strict=True)
    if all(weight is None for weight in weights):
        return WeightedData(places)
    if any(weight is None for weight in weights):
        missing = places[weights.index(None)]
        raise InputError(f"{missing} has no weight, but other datasets have: give all of them PLACE:WEIGHT, or none")
    return WeightedData(places, weights)


def _with_weight(argument: str | Path) -> tuple[str, float | None]:
    place, colon, word = str(argument).rpartition(":")
    try:
        if not colon or Path(argument).exists():
            return str(argument), None
        weight = float(word)
    except ValueError:  # "s3://bucket/tokens", or a folder with a colon in its name that does not exist
        return str(argument), None
    if not 0 < weight < math.inf:
        raise InputError(f"--data {argument}: the weight is {word}; expected a number above 0, or leave it out")
    return place, weight


def _read_file(path: Path) -> WeightedData:
    try:
        raw = read_yaml_file(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not raw or not isinstance(raw, dict):
        raise InputError(f"{path}: expected a map of datasets to weights, one 'PLACE: WEIGHT' a line")
    for place, weight in raw.items():
        if type(weight) not in (int, float) or not 0 < weight < math.inf:
            found = "has no weight" if weight is None else f"has the weight {weight!r}"
            raise InputError(f"{path}: {place}: {found}; expected a number above 0 (leave out what is not to be used)")
    return WeightedData(tuple(map(str, raw)), tuple(map(float, raw.values())), str(path))
