"""What a run did when: JSON lines appended to a file outside of OUT.

OUT itself has no such figures: its bytes follow from the input alone, and the clock is no input.

    {"event": "begin", "time": 1795392000.1, "total_seconds": 29000.0, "done_seconds": 0.0}
    {"event": "first audio", "time": 1795392003.9, "seconds": 28.4}
    {"event": "shard", "time": 1795392031.7, "shard": 0, "cuts": 851, "tokens": 180312, "quarantined": 0,
     "seconds": 3606.2}

Times are of the Unix clock, in seconds; `done_seconds` of audio were done before the run, `seconds` by it so far; cuts
that failed count as done.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.format.ledger import Receipt
from tokenizer.errors import InputError


class RunLog:
    """Appends to a log. Raises InputError where the file cannot be written."""

    def __init__(self, path: Path, total_seconds: float, done_seconds: float) -> None:
        self._path = path
        self._append("begin", total_seconds=total_seconds, done_seconds=done_seconds)

    def first_audio(self, seconds: float) -> None:
        """So many seconds are done; from here on nobody starts up."""
        self._append("first audio", seconds=round(seconds, 3))

    def shard(self, receipt: Receipt, seconds: float) -> None:
        """A shard is done."""
        counts = {"cuts": receipt.cuts, "tokens": receipt.tokens, "quarantined": len(receipt.quarantined)}
        self._append("shard", shard=receipt.shard, **counts, seconds=round(seconds, 3))

    def _append(self, event: str, **fields: Any) -> None:
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}) + "\n"
        try:
            with open(self._path, "a", encoding="ascii") as file:
                file.write(line)
        except OSError as error:
            raise InputError(f"{self._path}: the log cannot be written ({error.strerror})") from None


@dataclass(frozen=True)
class Speed:
    """How fast the runs of a log were.

    Attributes:
        points: (hours at work, hours of audio done), from (0, 0) on; pauses between runs are left out.
        runs: that began.
    """

    points: Sequence[tuple[float, float]]
    runs: int

    @property
    def times_real_time(self) -> float:
        """Over all runs, each counted until its last shard."""
        hours, audio = self.points[-1]
        return audio / hours if hours else 0.0


def read_speed(path: Path) -> Speed:
    """The speed that a log tells of. Lines that break off, as a kill leaves them, are passed over.

    Raises:
        InputError: the log cannot be read, or no run in it did a shard.
    """
    points, runs, began = [(0.0, 0.0)], 0, 0.0
    offset = (0.0, 0.0)
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the log cannot be read ({error}); expected the file of `tokenize --log`") from None
    for line in lines:
        try:
            entry = json.loads(line)
            if entry["event"] == "begin":
                runs, began, offset = runs + 1, entry["time"], points[-1]
            elif entry["event"] == "shard":
                hours, audio = (entry["time"] - began) / 3600, entry["seconds"] / 3600
                points.append((offset[0] + max(hours, 0.0), offset[1] + audio))
        except (ValueError, KeyError, TypeError):
            continue
    if not runs or len(points) == 1:
        raise InputError(f"{path}: no shard was done in it; expected the file of `tokenize --log`")
    return Speed(points, runs)
