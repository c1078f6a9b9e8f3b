"""What the server's process and the model's process say to each other; plain values that pickle.

A stream is known by a number that the server gives it and never gives again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from slm.generation.generate import Sampling


class Request(NamedTuple):
    """A continuation that someone wants."""

    sampling: Sampling
    seed: int
    min_seconds: float  # of new speech
    max_seconds: float | None  # None: until the model ends it or it is cancelled
    live: bool = True  # paced as it is played; else as fast as the live ones leave time for


# ---- from the server to the model ---------------------------------------------------------------------------------


class Open(NamedTuple):
    """Begin a stream, or wait for a slot."""

    stream: int
    request: Request


class Feed(NamedTuple):
    """More of a stream's prompt."""

    stream: int
    samples: np.ndarray  # float32 [S] at the codec's input rate


class EndPrompt(NamedTuple):
    """The prompt is whole: speak."""

    stream: int
    at: float  # `time.monotonic()` of its arrival


class Cancel(NamedTuple):
    """End a stream, wherever it is. Nothing is said of it any more, but for `Done`."""

    stream: int


class Encode(NamedTuple):
    """A short wave to tokens."""

    stream: int
    samples: np.ndarray  # float32 [S]


class Decode(NamedTuple):
    """A few tokens to a wave."""

    stream: int
    codes: np.ndarray  # int64 [T]


class Stop(NamedTuple):
    """End the process."""


Command = Open | Feed | EndPrompt | Cancel | Encode | Decode | Stop

# ---- from the model to the server ---------------------------------------------------------------------------------


class Queued(NamedTuple):
    """No slot is free; `position` counts from 1."""

    stream: int
    position: int


class Ready(NamedTuple):
    """The stream has a slot."""

    stream: int


class Sound(NamedTuple):
    """Codes and their audio: a piece of the prompt as the codec renders it, or of new speech."""

    stream: int
    new: bool
    codes: np.ndarray  # uint16 [T]
    pcm: bytes  # 16-bit, little-endian, mono, at the codec's output rate
    step_ms: float  # computing time of the step that made it
    late_ms: float  # how long after the moment at which a listener without any buffer needs it; 0 for a prompt


class Done(NamedTuple):
    """The last that is heard of a stream."""

    stream: int
    reason: str  # "ended" by the model, "length", "cancelled", "no prompt", "full", or for jobs "done"
    seconds: float = 0.0  # of new speech
    first_audio_ms: float | None = None  # from the prompt's end
    missed: int = 0  # chunks that were late
    result: bytes = b""  # of `Encode`: uint16 tokens; of `Decode`: PCM


Event = Queued | Ready | Sound | Done
