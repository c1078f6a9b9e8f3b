"""An input in blocks that can be read apart from each other, also in other processes: lines of a manifest, a shard of
Shar, or all of another input."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from pipelines.sources.access import Access
from pipelines.sources.cuts import PathRule, SourceCut, as_cut, parsed_line, read_lines
from pipelines.storage.places import parent
from tokenizer.errors import InputError

BLOCK_LINES = 2000


class Block(Protocol):
    """Cuts one after another."""

    @property
    def rule(self) -> PathRule | None:
        """For paths; one of all blocks of an input, in order. None: the block can be read in this process only."""
        ...

    def cuts(self) -> Iterator[SourceCut]:
        """Every cut, lazily."""
        ...


@dataclass
class LineBlock:
    """Some lines of a manifest, with their numbers."""

    place: str
    rule: PathRule
    hosts: tuple[str, ...] | None
    lines: list[tuple[int, bytes]]

    def cuts(self) -> Iterator[SourceCut]:
        for number, line in self.lines:
            cut = as_cut(parsed_line(self.place, number, line), f"{self.place}, line {number}", self.rule)
            yield SourceCut(cut, hosts=self.hosts)


def line_blocks(place: str, access: Access) -> Iterator[LineBlock]:
    """The blocks of a manifest. Raises InputError as `read_lines` does."""
    rule, hosts, lines = PathRule(parent(place), access), access.reachable(place), read_lines(place)
    held: list[tuple[int, bytes]] = []
    try:
        for line in lines:
            held.append(line)
            if len(held) == BLOCK_LINES:
                yield LineBlock(place, rule, hosts, held)
                held = []
    except InputError:
        if held:
            yield LineBlock(place, rule, hosts, held)  # what is wrong with these comes first
        raise
    if held:
        yield LineBlock(place, rule, hosts, held)


@dataclass
class HereBlock:
    """Cuts that are read in this process."""

    read: Callable[[], Iterator[SourceCut]]
    rule: PathRule | None = None

    def cuts(self) -> Iterator[SourceCut]:
        return self.read()


def cuts_in(blocks: Iterator[Block]) -> Iterator[SourceCut]:
    """Every cut of the blocks, lazily."""
    return itertools.chain.from_iterable(block.cuts() for block in blocks)
