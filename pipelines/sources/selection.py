"""Which cuts of the input take part, and which of their channels: decided while planning, from the manifest alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from tokenizer.errors import InputError


@dataclass(frozen=True)
class Selection:
    """What to take of the input.

    Attributes:
        min_seconds, max_seconds: cuts shorter or longer than this are skipped, and counted. A cut whose duration is
            not known is no short cut: it takes part, and ends in the quarantine.
        channel: of cuts with several channels take this one, instead of the mean of all. A mix stays a mix.
    """

    min_seconds: float = 0.0
    max_seconds: float = math.inf
    channel: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_seconds <= self.max_seconds:
            raise InputError(
                f"min_seconds is {self.min_seconds} and max_seconds is {self.max_seconds}: expected 0 or more, and the "
                "second not below the first"
            )
        if self.channel is not None and self.channel < 0:
            raise InputError(f"channel is {self.channel}, expected a number from 0")

    def to_dict(self) -> dict[str, Any]:
        """What differs from the default; JSON has no infinity."""
        default = asdict(Selection())
        return {name: value for name, value in asdict(self).items() if value != default[name]}

    def skips(self, seconds: float) -> bool:
        """Whether a cut of this duration takes no part; 0 means unknown."""
        return seconds > 0 and not self.min_seconds <= seconds <= self.max_seconds

    def narrowed(self, cut: dict[str, Any]) -> dict[str, Any]:
        """The cut with the chosen channel only: a MultiCut becomes the MonoCut that Lhotse's `to_mono` makes of it."""
        if self.channel is None or cut["type"] != "MultiCut":
            return cut
        supervisions = [
            {**supervision, "channel": self.channel}
            for supervision in cut.get("supervisions") or []
            if self.channel in _as_list(supervision.get("channel", 0))
        ]
        return {**cut, "type": "MonoCut", "channel": self.channel, "supervisions": supervisions}


def _as_list(channel: Any) -> list[int]:
    return channel if isinstance(channel, list) else [channel]
