"""The figures of a tokenized dataset, in one pass over its shards; memory does not grow with their number of cuts.

Totals and bytes come from `dataset.json`. Durations, speakers, languages and all figures about codes are counted in the
shards that are read: all of them, or some spread evenly over the dataset.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipelines.format.description import Description, read_intact, spread
from pipelines.format.layout import Layout
from pipelines.format.ledger import Quarantined, read_quarantine
from pipelines.format.shards import read_codes, read_cuts
from pipelines.sources.cuts import duration
from pipelines.storage.folders import Folder
from pipelines.storage.stable_bytes import StoredFile
from tokenizer.errors import InputError
from tokenizer.metrics.codes import usage_of_counts

DURATION_STEP = 0.5  # seconds of one bar
LONGEST_RUN = 50  # tokens; longer runs are counted with these
MOST_NAMES = 100_000  # speakers or languages counted by name; names seen later are counted as OTHERS
NOT_SAID, SEVERAL, OTHERS = "(not said)", "(several)", "(others)"
KINDS = {"shards/codes": "codes", "shards/cuts": "cuts", "index/": "indexes", "packed/": "packed"}


@dataclass
class Figures:
    """The figures of one dataset.

    Attributes:
        description: the content of `dataset.json`.
        shards_read: number of shards the counts below are from.
        durations: number of cuts by duration, in whole steps of DURATION_STEP seconds.
        speakers, languages: number of tokens by label in the cuts' supervisions.
        codes: int64 [codebook_size], how often each code occurs.
        runs: int64 [LONGEST_RUN + 1], number of tokens in runs of that many equal tokens.
        sizes: bytes by kind of file, of all shards.
        reasons: reason -> number of quarantined cuts, and the first of them as in `quarantine.jsonl`.
    """

    description: Description
    codes: np.ndarray
    shards_read: int = 0
    durations: Counter[int] = field(default_factory=Counter)
    speakers: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    runs: np.ndarray = field(default_factory=lambda: np.zeros(LONGEST_RUN + 1, np.int64))
    sizes: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, tuple[int, Quarantined]] = field(default_factory=dict)

    @property
    def hours(self) -> float:
        """Of audio in the whole dataset."""
        return self.description.totals.seconds / 3600

    @property
    def ideal_bytes(self) -> float:
        """Size of the tokens packed to their bits, and nothing else."""
        return self.description.totals.tokens * self.description.codec.bits_per_token / 8

    def usage(self) -> dict[str, float]:
        """Codebook usage as `code_usage` returns it; empty if there are no tokens."""
        return usage_of_counts(self.codes) if self.codes.any() else {}

    def bit_shares(self) -> np.ndarray:
        """float64 [bits]: share of tokens in which each bit is 1, the most significant first."""
        bits = self.description.codec.bits_per_token
        is_set = np.arange(len(self.codes))[:, None] >> np.arange(bits - 1, -1, -1) & 1
        return self.codes @ is_set / max(self.codes.sum(), 1)

    def to_dict(self) -> dict[str, Any]:
        """The figures for JSON."""
        description = self.description
        sizes = {**self.sizes, "all": self.sizes.total(), "ideal": self.ideal_bytes}
        return {
            "codec": description.codec.to_dict(),
            "made_from": description.made_from,
            "tools": description.tools,
            "totals": asdict(description.totals),
            "shards": len(description.shards),
            "shards_read": self.shards_read,
            "bytes": dict(self.sizes),
            "bytes_per_hour": {kind: round(size / self.hours) for kind, size in sizes.items()} if self.hours else {},
            "codes": {**self.usage(), "bits_set": [round(float(share), 6) for share in self.bit_shares()]},
            "tokens_in_runs": {length: int(tokens) for length, tokens in enumerate(self.runs) if tokens},
            "durations": {f"{step * DURATION_STEP:g}": cuts for step, cuts in sorted(self.durations.items())},
            "speakers": dict(self.speakers.most_common()),
            "languages": dict(self.languages.most_common()),
            "quarantined": {reason: count for reason, (count, _) in self.reasons.items()},
        }


def collect(out: Folder, sample_shards: int | None = None, progress: Callable[[], object] = lambda: None) -> Figures:
    """Read a dataset.

    Args:
        out: the folder of a finished dataset.
        sample_shards: read at most this many shards, spread evenly; None: all.
        progress: called after each shard.

    Raises:
        InputError: there is no dataset, or a file of it is missing or damaged.
    """
    layout = Layout(out)
    description = read_intact(layout)
    figures = Figures(description, np.zeros(description.codec.codebook_size, np.int64))
    for name, stored in _files(description):
        kind = next((kind for begin, kind in KINDS.items() if name.startswith(begin)), "ledgers")
        figures.sizes[kind] += stored.bytes
    _count_reasons(layout, figures)
    for entry in spread(description.shards, sample_shards):
        cuts, codes = read_shard(layout, entry.shard)
        _count_shard(figures, cuts, codes)
        progress()
    return figures


def read_shard(layout: Layout, shard: int) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """The cuts of a shard and their codes, uint16 [T] each. Raises InputError if they cannot be read."""
    try:
        cuts, codes = read_cuts(layout.cuts_file(shard)), read_codes(layout, shard)
        if len(codes) != len(cuts):
            raise ValueError(f"{len(cuts)} cuts, but {len(codes)} are in the index")
    except (OSError, EOFError, ValueError, TypeError, zlib.error) as error:
        raise InputError(
            f"{layout.out}: shard {shard} cannot be read ({error}); `focalstream verify {layout.out}` lists what is "
            "wrong, `focalstream repair` fixes it"
        ) from error
    return cuts, codes


def run_tokens(codes: list[np.ndarray]) -> np.ndarray:
    """int64 [LONGEST_RUN + 1]: number of tokens in runs of that many equal tokens; a run ends with its cut."""
    whole = np.concatenate([np.zeros(0, np.uint16), *codes])
    if not len(whole):
        return np.zeros(LONGEST_RUN + 1, np.int64)
    begins = np.ones(len(whole), bool)
    begins[1:] = whole[1:] != whole[:-1]
    begins[np.cumsum([0, *map(len, codes[:-1])])] = True
    lengths = np.diff(np.append(np.flatnonzero(begins), len(whole)))
    return np.bincount(np.minimum(lengths, LONGEST_RUN), lengths, LONGEST_RUN + 1).astype(np.int64)


def _count_shard(figures: Figures, cuts: list[dict[str, Any]], codes: list[np.ndarray]) -> None:
    figures.shards_read += 1
    figures.codes += np.bincount(np.concatenate(codes), minlength=len(figures.codes))
    figures.runs += run_tokens(codes)
    for cut, tokens in zip(cuts, map(len, codes), strict=True):
        figures.durations[int(duration(cut) / DURATION_STEP)] += 1
        _add(figures.speakers, _said(cut, "speaker"), tokens)
        _add(figures.languages, _said(cut, "language"), tokens)


def _said(cut: dict[str, Any], name: str) -> str:
    """The label `name` of a cut's supervisions, or SEVERAL or NOT_SAID."""
    said = {str(entry[name]) for entry in cut.get("supervisions") or [] if entry.get(name) is not None}
    return SEVERAL if len(said) > 1 else said.pop() if said else NOT_SAID


def _add(counts: Counter[str], name: str, tokens: int) -> None:
    counts[name if name in counts or len(counts) < MOST_NAMES else OTHERS] += tokens


def _count_reasons(layout: Layout, figures: Figures) -> None:
    counts: Counter[str] = Counter()
    examples: dict[str, Quarantined] = {}
    try:
        for _, failed in read_quarantine(layout):
            counts[failed.reason] += 1
            examples.setdefault(failed.reason, failed)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{layout.quarantine} cannot be read ({error}); fix it with `focalstream repair`") from error
    figures.reasons = {reason: (count, examples[reason]) for reason, count in counts.most_common()}


def _files(description: Description) -> Iterator[tuple[str, StoredFile]]:
    yield from description.files.items()
    for entry in description.shards:
        yield from entry.files.items()
