"""The cuts of an input as lines of cut lists, in order; several processes read blocks of a large input side by side.

Whatever depends on all earlier cuts (which shard a cut belongs to, whether its id has occurred before) is left to the
caller.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

from pipelines.bulk.feed.processes import die_with_parent, interrupts_blocked
from pipelines.bulk.stored_plan import line_of
from pipelines.format.member_ids import member_id
from pipelines.sources import cuts as cuts_module
from pipelines.sources.blocks import Block
from pipelines.sources.cuts import Selection, SourceCut
from pipelines.sources.manifests import manifest_bytes, read_blocks, read_cuts
from tokenizer.errors import InputError

LARGE_BYTES = 64 << 20  # of lists of cuts, unpacked; for less, starting more processes takes longer than it saves
AHEAD = 4  # blocks for each process


@dataclass
class PlannedLines:
    """The cuts of a block that a selection takes.

    Attributes:
        members: their names in a tar, if none of the ids was there before.
        rests: of `line_of`.
        skipped: how many cuts it leaves out.
        base, unfound, renamed: what the block's `PathRule` has found.
    """

    ids: list[str] = field(default_factory=list)
    members: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    rests: list[str] = field(default_factory=list)
    skipped: int = 0
    base: str | None = None
    unfound: bool = False
    renamed: dict[str, str] = field(default_factory=dict)


class SelectedCuts:
    """The cuts of the inputs that a selection takes, lazily, narrowed to its channel.

    Attributes:
        skipped: how many cuts it has left out so far.
    """

    def __init__(self, source: Iterator[SourceCut], selection: Selection) -> None:
        self.skipped = 0
        self._selection, self._source = selection, source

    @classmethod
    def of(cls, inputs: list[str], selection: Selection) -> SelectedCuts:
        return cls(read_cuts(inputs, selection.access), selection)

    def __iter__(self) -> SelectedCuts:
        return self

    def __next__(self) -> SourceCut:
        for item in self._source:
            if not self._selection.skips(item.seconds):
                return SourceCut(self._selection.narrowed(item.cut), item.audio, item.hosts)
            self.skipped += 1
        raise StopIteration


def planned_lines(inputs: list[str], selection: Selection, processes: int = 1) -> Generator[PlannedLines, None, None]:
    """The cuts of all inputs in order. The same lines with any number of processes.

    Raises:
        InputError: an input is not what it should be, or a process dies.
    """
    if processes < 2 or manifest_bytes(inputs) < LARGE_BYTES:
        for block in read_blocks(inputs, selection.access):
            yield from _in_pieces(block, selection)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_begin)
    try:
        yield from _side_by_side(pool, processes, inputs, selection)
    except BrokenProcessPool as error:
        raise InputError(f"{', '.join(inputs)}: a process that read it died ({error}); try --workers 1") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _side_by_side(pool: Executor, processes: int, inputs: list[str], selection: Selection) -> Iterator[PlannedLines]:
    pending: deque[tuple[Block, Future[PlannedLines] | None]] = deque()
    blocks = read_blocks(inputs, selection.access, apart=True)
    failure: InputError | None = None
    while True:
        while len(pending) <= AHEAD * processes and failure is None:
            try:
                block = next(blocks, None)
            except InputError as error:  # what is wrong with the blocks before comes first
                failure = error
                break
            if block is None:
                break
            if block.rule is None:
                pending.append((block, None))
                continue
            with interrupts_blocked():  # processes are started as they are needed
                pending.append((block, pool.submit(_lines, block, selection)))
        if not pending:
            break
        block, future = pending.popleft()
        if future is None or block.rule is None:
            yield from _in_pieces(block, selection)
            continue
        lines = future.result()
        if block.rule.base is None:
            block.rule.base = lines.base
        elif lines.unfound or lines.base not in (None, block.rule.base):  # it did not know where the first one is
            lines = _lines(block, selection)
        for name, other in lines.renamed.items():
            block.rule.rename(name, other)
        yield lines
    if failure is not None:
        raise failure


def _begin() -> None:
    die_with_parent()
    logging.getLogger(cuts_module.__name__).setLevel(logging.ERROR)  # the parent says it, once


def _lines(block: Block, selection: Selection) -> PlannedLines:
    """All of a block."""
    lines, source = PlannedLines(), SelectedCuts(block.cuts(), selection)
    for item in source:
        _append(lines, item)
    lines.skipped = source.skipped
    if block.rule is not None:
        lines.base, lines.unfound, lines.renamed = block.rule.base, block.rule.unfound, block.rule.renamed
    return lines


def _in_pieces(block: Block, selection: Selection) -> Iterator[PlannedLines]:
    """A block in this process, which may be as long as a folder of millions of files."""
    source, lines, told = SelectedCuts(block.cuts(), selection), PlannedLines(), 0
    for item in source:
        _append(lines, item)
        if len(lines.ids) == PIECE:
            lines.skipped, told = source.skipped - told, source.skipped
            yield lines
            lines = PlannedLines()
    lines.skipped = source.skipped - told
    yield lines


PIECE = 500  # cuts


def _append(lines: PlannedLines, item: SourceCut) -> None:
    lines.ids.append(item.id)
    lines.members.append(member_id(item.id))
    lines.seconds.append(item.seconds)
    lines.rests.append(line_of(item))
