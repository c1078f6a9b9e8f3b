"""What an audio file holds, as its bytes show it: streams one after another, and what is missing or damaged."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizer.errors import InputError

Part = bytes | tuple[int, int]
"""Literal bytes, or (offset, size) in the file."""

LOUDEST = 100.0  # a peak above this is not audio of full scale 1, but 16-bit numbers, say


class BadAudio(InputError):
    """Audio that cannot be used. `reason` is "unreadable", "truncated", "damaged" or "zero length"; the message says
    what is wrong without the name of the file."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class NoAudio(BadAudio):
    """No audio of a kind that is known."""

    def __init__(self, detail: str) -> None:
        super().__init__("unreadable", detail)


@dataclass(frozen=True)
class Stream:
    """One stream that a decoder takes from its first byte to its last.

    Attributes:
        parts: the bytes to decode, in order; mostly one range of the file.
        frames: samples per channel that its header announces; None where it does not say.
        tolerance: frames by which decoding may differ from `frames` in this format.
        delay: decoded frames that come before the first, and are dropped: the codec's own, where no header tells.
        md5: of the decoded integers (FLAC); empty where there is none.
        bits: per sample of these integers.
    """

    parts: tuple[Part, ...]
    frames: int | None = None
    tolerance: int = 0
    delay: int = 0
    md5: bytes = b""
    bits: int = 0


@dataclass(frozen=True)
class Damage:
    """Something wrong with the bytes of a file. What ends before second `at` (None: before the end) is sound."""

    reason: str
    detail: str
    at: float | None = None


@dataclass(frozen=True)
class Contents:
    """What `examine` finds.

    Attributes:
        kind: "WAV", "FLAC", "Ogg", "MPEG", ... (see `kinds`).
        streams: what is to be decoded, one after another.
        damage: in the order of the file.
    """

    kind: str
    streams: tuple[Stream, ...]
    damage: tuple[Damage, ...] = ()
