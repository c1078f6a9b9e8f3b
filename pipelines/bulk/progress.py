"""How far a run is: one bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType

from pipelines.bulk.run_log import RunLog
from pipelines.bulk.worker_process import Event, Progress
from pipelines.format.ledger import Receipt

SECONDS_BETWEEN_LINES = 60.0


class ProgressBar:
    """Hours of audio done of all, how many times faster than real time, failures, and the time left.

    Args:
        total_seconds: of audio in the whole run.
        done_seconds: of it that an earlier run has done.
        quarantined: cuts it failed at.
        log: a file that each shard is noted in; see `pipelines.bulk.run_log`.
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
        """Seconds of audio encoded by this run per second it took; what it found done does not count."""
        return self._seconds / max(time.monotonic() - self._begun, 1e-9)

    def see(self, event: Event) -> None:
        """Count what an engine reports."""
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
        left = max(self._total - done, 0.0) / max(self.times_real_time, 1e-9)
        return (
            f"{done / 3600:.2f} of {self._total / 3600:.2f} h, {self.times_real_time:.0f}x real time, "
            f"{self.quarantined} failed, about {left / 60:.0f} min left"
        )
