"""The ledger of cuts that could not be tokenized, each with its reason."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipelines.bulk.plan import PlannedCut
from pipelines.sources.audio import CutError, describe_source

MAX_DETAIL = 300  # characters


@dataclass(frozen=True)
class Quarantined:
    """One line of `quarantine.jsonl`, where the number of its shard stands before it.

    `reason` is a phrase to group by: "missing file", "unreadable", "zero length", "truncated", "not finite",
    "not audio", "no such channel", "impossible start", "too long", "encoder failed", "killed its worker". `error` is
    the class of the exception, `detail` its message.
    """

    id: str
    source: str
    reason: str
    error: str
    detail: str
    attempts: int


def quarantine(planned: PlannedCut, error: Exception, attempts: int) -> Quarantined:
    """The ledger entry for a cut whose last attempt raised `error`. It is the same in every run."""
    return Quarantined(
        planned.id, describe_source(planned), _reason(error), type(error).__name__, _detail(error), attempts
    )


def _reason(error: Exception) -> str:
    if isinstance(error, CutError):
        return error.reason
    return "missing file" if isinstance(error, FileNotFoundError) else "unreadable"


def _detail(error: Exception) -> str:
    # libsndfile's own words, without the name or (for audio inside a tar) the memory address of what it read
    text = getattr(error, "error_string", None) or str(error)
    first_line = next(iter(text.strip().splitlines()), "")
    return re.sub(r" at 0x[0-9a-f]+", "", first_line)[:MAX_DETAIL]
