"""What the codec is given, step by step, as a pure function of the lengths of the cuts.

Cuts of ordinary length are sorted by it and put into batches. Longer ones pass through the codec's streaming state
window by window: each row takes one recording after the other, and the rows make their steps together.

Legend: B rows, S samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Piece(NamedTuple):
    """What a row holds: so many samples of a cut from sample `begin` on; silence after them.

    Attributes:
        cut: its position among the cuts that are laid out together.
    """

    cut: int
    begin: int
    samples: int


@dataclass(frozen=True)
class Step:
    """One call of the codec.

    Attributes:
        width: S, the samples of every row.
        streams: rows continue those of the step before, where `begin` is not 0; the last ones may have ended.
    """

    pieces: tuple[Piece, ...]
    width: int
    streams: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """[B, S]."""
        return len(self.pieces), self.width


@dataclass(frozen=True)
class BatchRules:
    """How cuts are laid out; all numbers but the last are samples.

    Attributes:
        batch: the longest cut of a batch times its number of cuts stays below this, unless it is one cut.
        longest: longer cuts are in no batch.
        window: of a long cut, that a step takes; whole chunks of the codec.
        chunk: what the codec takes at once.
        long_rows: long cuts at the same time.
    """

    batch: float
    longest: float
    window: int
    chunk: int
    long_rows: int = 1

    @property
    def most(self) -> int:
        """Samples of the largest step, silence included."""
        windows = 0 if self.window > self.longest else self.window * self.long_rows
        return max(int(self.batch), int(self.longest), windows) + self.chunk


def lay_out(samples: Sequence[int], batch: float, longest: float) -> tuple[list[list[int]], list[int]]:
    """Batches of cuts by length, as positions, then the cuts that are in no batch; see `BatchRules`."""
    batches, long_cuts = [], []
    current: list[int] = []
    for i in sorted(range(len(samples)), key=lambda i: (samples[i], i)):
        if samples[i] > longest:
            long_cuts.append(i)
            continue
        if current and (len(current) + 1) * samples[i] > batch:
            batches.append(current)
            current = []
        current.append(i)
    if current:
        batches.append(current)
    return batches, long_cuts


def steps(samples: Sequence[int], rules: BatchRules, needed: Callable[[int], bool]) -> Iterator[Step]:
    """What the codec is given for cuts of these lengths, in order, without the steps that hold no cut that is needed.

    Args:
        needed: asked of a cut before each step; a long one that turns out to be unreadable takes no further steps.
    """
    batches, long_cuts = lay_out(samples, rules.batch, rules.longest)
    for batch in batches:
        if any(map(needed, batch)):
            # The codec takes no empty rows: cuts without a length have one silent sample.
            width = max(1, *(samples[i] for i in batch))
            yield Step(tuple(Piece(i, 0, samples[i]) for i in batch), width)
    yield from windows(long_cuts, samples, rules, needed)


def windows(
    long_cuts: Sequence[int], samples: Sequence[int], rules: BatchRules, needed: Callable[[int], bool]
) -> Iterator[Step]:
    """The steps of the long cuts, longest first, each in the row that is free first.

    Manifests may claim any length, so windows are counted, not listed.
    """
    rows = _rows(long_cuts, samples, rules)
    at = [0] * len(rows)  # windows that are done of the first cut of each row
    while rows:
        pieces = []
        for (cut, *_), done in zip(rows, at, strict=True):
            begin = done * rules.window
            pieces.append(Piece(cut, begin, min(rules.window, samples[cut] - begin)))
        further = 1
        if any(needed(piece.cut) for piece in pieces):
            width = max(-(-piece.samples // rules.chunk) * rules.chunk for piece in pieces)
            yield Step(tuple(pieces), width, streams=True)
        else:
            further = min(_windows(samples[cut], rules) - done for (cut, *_), done in zip(rows, at, strict=True))
        for number, row in enumerate(rows):
            at[number] += further
            if at[number] == _windows(samples[row[0]], rules):
                at[number], rows[number] = 0, row[1:]
        while rows and not rows[-1]:  # rows that have ended are the last
            rows.pop()
            at.pop()


def _rows(long_cuts: Sequence[int], samples: Sequence[int], rules: BatchRules) -> list[list[int]]:
    """The cuts of each row in turn, the row with most windows first."""
    rows: list[tuple[int, list[int]]] = [(0, []) for _ in range(min(rules.long_rows, len(long_cuts)))]
    for i in sorted(long_cuts, key=lambda i: (-samples[i], i)):
        shortest = min(range(len(rows)), key=lambda number: rows[number][0])
        total, row = rows[shortest]
        rows[shortest] = total + _windows(samples[i], rules), [*row, i]
    return [row for _, row in sorted(rows, key=lambda row: -row[0])]


def _windows(samples: int, rules: BatchRules) -> int:
    return -(-samples // rules.window)
