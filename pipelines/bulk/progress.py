"""How far a run is: a bar on a terminal, a line a minute elsewhere, and a log file where one is asked for.

The log is JSON lines, appended to a file outside of OUT, because the bytes of OUT depend on no clock:

    {"event": "begin", "time": 1795392000.1, "total_seconds": 29000.0, "done_seconds": 0.0}
    {"event": "first audio", "time": 1795392003.9, "seconds": 28.4}
    {"event": "shard", "time": 1795392031.7, "shard": 0, "cuts": 851, "tokens": 180312, "quarantined": 0,
     "seconds": 3606.2}

`time` is Unix time in seconds. `done_seconds` of audio were done before the run, `seconds` by it so far; cuts that
failed count as done.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pipelines.bulk.tasks import Event, Progress
from pipelines.format.ledger import Receipt
from tokenizer.errors import InputError

SECONDS_BETWEEN_LINES = 60.0


class ProgressBar:
    """Hours of audio done, how many times faster than real time, failures, and the time left.

    Args:
        total_seconds: audio in the whole run.
        done_seconds: the part of it that earlier runs have done.
        quarantined: cuts that failed in earlier runs.
        log: a file to append a line to for each shard.
    """

    def __init__(self, total_seconds: float, done_seconds: float, quarantined: int, log: Path | None = None) -> None:
        from tqdm import tqdm

        self.quarantined = quarantined
        self._begun, self._seconds, self._reported = time.monotonic(), 0.0, time.monotonic()
        self._done, self._total = done_seconds, total_seconds
        self._log = RunLog(log, total_seconds, done_seconds) if log is not None else None
        self._bar = tqdm(
            total=round(total_seconds / 3600, 3),
            initial=round(done_seconds / 3600, 3),
            bar_format="{l_bar}{bar}| {n:.2f}/{total:.2f} h [{elapsed}<{remaining}{postfix}]",
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    @property
    def times_real_time(self) -> float:
        """Seconds of audio encoded by this run per second of its time; what earlier runs did does not count."""
        return self._seconds / max(time.monotonic() - self._begun, 1e-9)

    def expect(self, seconds: float) -> None:
        """This run is to do so many more seconds of audio; negative: fewer."""
        self._total += seconds
        self._bar.total = round(self._total / 3600, 3)

    def see(self, event: Event) -> None:
        """Count what an executor reports."""
        if isinstance(event, Progress):
            if self._log is not None and event.seconds and not self._seconds:
                self._log.first_audio(event.seconds)
            self._seconds += event.seconds
            self._bar.n = (self._done + self._seconds) / 3600
        elif isinstance(event, Receipt):
            self.quarantined += len(event.quarantined)
            if self._log is not None:
                self._log.shard(event, self._seconds)
        self._bar.set_postfix_str(f"{self.times_real_time:.0f}x real time, {self.quarantined} failed", refresh=False)
        self._bar.update(0)
        if self._bar.disable and time.monotonic() - self._reported >= SECONDS_BETWEEN_LINES:
            self._reported = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        done = self._done + self._seconds
        line = f"{done / 3600:.2f} of {self._total / 3600:.2f} h"
        if self._seconds <= 0:  # no speed yet from which to tell the time left
            return f"{line}, {self.quarantined} failed, waiting for the first audio"
        left = max(self._total - done, 0.0) / self.times_real_time
        return (
            f"{line}, {self.times_real_time:.0f}x real time, {self.quarantined} failed, about {left / 60:.0f} min left"
        )


class RunLog:
    """Appends to a log file. Raises InputError where it cannot be written."""

    def __init__(self, path: Path, total_seconds: float, done_seconds: float) -> None:
        self._path = path
        self._append("begin", total_seconds=total_seconds, done_seconds=done_seconds)

    def first_audio(self, seconds: float) -> None:
        """The first `seconds` of audio are done, so start-up is over."""
        self._append("first audio", seconds=round(seconds, 3))

    def shard(self, receipt: Receipt, seconds: float) -> None:
        """A shard is done."""
        counts = {"cuts": receipt.cuts, "tokens": receipt.tokens, "quarantined": len(receipt.quarantined)}
        self._append("shard", shard=receipt.shard, **counts, seconds=round(seconds, 3))

    def _append(self, event: str, **fields: Any) -> None:
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}) + "\n"
        try:
            with open(self._path, "a", encoding="ascii", newline="\n") as file:
                file.write(line)
        except OSError as error:
            raise InputError(f"{self._path}: the log cannot be written ({error.strerror})") from None


@dataclass(frozen=True)
class Speed:
    """How fast the runs of a log were.

    Attributes:
        points: (hours of work, hours of audio done), from (0, 0) on; pauses between runs are left out.
        runs: how many runs began.
    """

    points: Sequence[tuple[float, float]]
    runs: int

    @property
    def times_real_time(self) -> float:
        """Over all runs, each counted until its last shard."""
        hours, audio = self.points[-1]
        return audio / hours if hours else 0.0


def read_speed(path: Path) -> Speed:
    """The speed that a log shows. Incomplete lines, as a kill leaves them, are skipped.

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
            record = json.loads(line)
            if record["event"] == "begin":
                runs, began, offset = runs + 1, record["time"], points[-1]
            elif record["event"] == "shard":
                hours, audio = (record["time"] - began) / 3600, record["seconds"] / 3600
                points.append((offset[0] + max(hours, 0.0), offset[1] + audio))
        except (ValueError, KeyError, TypeError):
            continue
    if not runs or len(points) == 1:
        raise InputError(f"{path}: no shard was done in it; expected the file of `tokenize --log`")
    return Speed(points, runs)
