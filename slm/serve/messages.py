"""Messages between the server's process and the model's process. All are plain values that pickle.

Each stream has a number, which the server never reuses.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from slm.generation.sampling import Sampling


class Request(NamedTuple):
    """The settings of a continuation."""

    sampling: Sampling
    seed: int
    min_seconds: float  # of new speech
    max_seconds: float | None  # of new speech; None: until the model ends it or it is cancelled
    live: bool = True  # generated in real time; otherwise in the time that live streams leave


# ---- from the server to the model ---------------------------------------------------------------------------------


class Open(NamedTuple):
    """Start a stream as soon as a slot is free."""

    stream: int
    request: Request


class Feed(NamedTuple):
    """More of a stream's prompt."""

    stream: int
    samples: np.ndarray  # float32 [S] at the codec's input rate


class EndPrompt(NamedTuple):
    """The prompt is complete: start the continuation."""

    stream: int
    at: float  # `time.monotonic()` of its arrival


class Cancel(NamedTuple):
    """End a stream in any state. No event but `Done` follows."""

    stream: int


class Encode(NamedTuple):
    """Encode a short wave."""

    stream: int
    samples: np.ndarray  # float32 [S]


class Decode(NamedTuple):
    """Decode a short token sequence."""

    stream: int
    codes: np.ndarray  # int64 [T]


class Stop(NamedTuple):
    """End the process."""


Command = Open | Feed | EndPrompt | Cancel | Encode | Decode | Stop

# ---- from the model to the server ---------------------------------------------------------------------------------


class Queued(NamedTuple):
    """The stream waits for a slot; `position` counts from 1."""

    stream: int
    position: int


class Ready(NamedTuple):
    """The stream has a slot."""

    stream: int


class Sound(NamedTuple):
    """Codes and their audio: a piece of the decoded prompt, or of new speech."""

    stream: int
    new: bool
    codes: np.ndarray  # uint16 [T]
    pcm: bytes  # 16-bit, little-endian, mono, at the codec's output rate
    step_ms: float  # computing time of its step
    late_ms: float  # delay behind real-time playback without a buffer; 0 for a prompt


class Done(NamedTuple):
    """The last event of a stream."""

    stream: int
    reason: str  # "ended" by the model, "length", "cancelled", "no prompt", "full", or for jobs "done"
    seconds: float = 0.0  # of new speech
    first_audio_ms: float | None = None  # from the end of the prompt
    missed: int = 0  # chunks that were late
    result: bytes = b""  # of `Encode`: uint16 tokens; of `Decode`: PCM


Event = Queued | Ready | Sound | Done
