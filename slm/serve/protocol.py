"""The WebSocket protocol, version 1: control messages and audio frames. docs/serving.md specifies it.

Invalid messages raise `Refused`: a code for programs, a line for people, and whether the connection ends.

Messages are checked by hand, because an error must show the invalid value, which msgspec's errors do not.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from slm.generation.opus import OPUS, PCM
from slm.generation.sampling import Sampling
from slm.serve.messages import Request
from tokenizer.errors import InputError

VERSION = 1
PROMPT, SPEECH = 1, 2  # kinds of a binary frame
HEADER = struct.Struct("<BBHI")  # kind, place in FORMATS, number of codes, sequence number from 0
FORMATS = (PCM, OPUS)
RATES = (8000, 96000)  # Hz of a prompt, lowest and highest

# WebSocket close codes
GOING_AWAY, POLICY, DIED, TOO_SLOW, BAD_TOKEN, TOO_FAST = 1001, 1008, 1011, 4408, 4401, 4429


@dataclass(frozen=True)
class Limits:
    """Limits for one client, as sent in the server's hello."""

    prompt_seconds: float = 30.0  # of one prompt, and of a file for the HTTP endpoints
    speech_seconds: float = 120.0  # of one continuation
    session_seconds: float = 3600.0  # of one connection
    message_bytes: int = 65536  # of one WebSocket message of audio
    control_bytes: int = 4096  # of one control message: parsing a long one would hold up all connections
    messages_per_second: int = 100  # with bursts of four seconds' worth
    starts_per_second: float = 1.0  # with bursts of ten
    upload_bytes: int = 8_000_000  # of one HTTP request
    upload_seconds: float = 20.0  # from the first to the last byte of an HTTP request's body
    connections: int = 256  # WebSockets at once
    hello_seconds: float = 5.0  # from the start of the connection to the client's hello
    unread_frames: int = 50  # frames in one client's send queue


class Budget:
    """A client's budget of something: `rate` a second, and up to `burst` at once after a pause."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._counted = burst, clock()

    def take(self) -> bool:
        """Spend one; False: nothing is left."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._counted) * self._rate)
        self._counted = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Refused(Exception):
    """A request of a client is refused.

    close: the close code if the connection ends with it; None: it stays open.
    """

    def __init__(self, code: str, message: str, close: int | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.close = code, message, close


@dataclass(frozen=True)
class Start:
    """`rate`: Hz of the prompt's samples if they are PCM. The formats are of FORMATS."""

    request: Request
    rate: int
    prompt_format: str
    sound_format: str


def parse(text: str, most: int = Limits.control_bytes) -> dict[str, Any]:
    """A control message: a JSON object with a string `type`, of up to `most` characters. Raises Refused."""
    if len(text) > most:
        raise Refused("bad_message", f"a text message has {len(text)} characters; expected {most} at most", POLICY)
    try:
        message = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refused("bad_message", "a text message is not JSON", POLICY) from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise Refused("bad_message", 'a text message is not a JSON object with a "type"', POLICY)
    return message


def check_fields(message: dict[str, Any], known: set[str], code: str = "bad_request", close: int | None = None) -> None:
    """Raise Refused for a field that is neither known nor `type`."""
    if unknown := sorted(set(message) - known - {"type"}):
        known_ones = f"known are {', '.join(sorted(known))}" if known else "it has none"
        raise Refused(code, f"{message['type']}: unknown field {_shown(unknown[0])}; {known_ones}", close)


def parse_start(message: dict[str, Any], default_rate: int, limits: Limits, formats: tuple[str, ...] = (PCM,)) -> Start:
    """The fields of `start`, all optional. Raises Refused without a close code. `formats`: what this server has."""
    settings = {field.name for field in fields(Sampling)} - {"silent_codes"}  # those are the codec's
    others = {"seed", "seconds", "min_seconds", "rate", "prompt_format", "sound_format"}
    check_fields(message, settings | others)
    seconds = number(message, "seconds", 6.0, 0.08, limits.speech_seconds)
    try:
        sampling = Sampling(
            repetition_penalty=number(message, "repetition_penalty", 1.0, 1.0, 10.0),
            repetition_window=whole(message, "repetition_window", 50, 1, 1000),
            temperature=number(message, "temperature", 1.0, 0.0, 10.0),
            top_k=whole(message, "top_k", 0, 0, 1 << 20),
            top_p=number(message, "top_p", 0.95, 0.0, 1.0),
            min_p=number(message, "min_p", 0.0, 0.0, 1.0),
            silence_limit=whole(message, "silence_limit", 0, 0, 10_000),
        )
    except InputError as error:
        raise Refused("bad_request", f"start: {error}") from None
    request = Request(
        sampling,
        whole(message, "seed", 0, 0, 2**53 - 1),
        min(seconds, number(message, "min_seconds", 2.0, 0.0, limits.speech_seconds)),
        seconds,
    )
    rate = whole(message, "rate", default_rate, *RATES)
    return Start(request, rate, choice(message, "prompt_format", formats), choice(message, "sound_format", formats))


def number(message: dict[str, Any], name: str, default: float, least: float, most: float) -> float:
    """A number field of a message. Raises Refused."""
    value = message.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise Refused("bad_request", f"{name} is {_shown(value)}; expected a number from {least:g} to {most:g}")
    return float(value)


def whole(message: dict[str, Any], name: str, default: int, least: int, most: int) -> int:
    """An integer field of a message. Raises Refused."""
    value = message.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Refused("bad_request", f"{name} is {_shown(value)}; expected a whole number from {least} to {most}")
    return value


def choice(message: dict[str, Any], name: str, known: tuple[str, ...]) -> str:
    """A field of a message that is one of some words, by default the first. Raises Refused."""
    value = message.get(name, known[0])
    if value not in known:
        raise Refused("bad_request", f"{name} is {_shown(value)}; this server has {', '.join(known)}")
    return value


def pack(kind: int, sequence: int, codes: np.ndarray, sound: bytes, sound_format: str = PCM) -> bytes:
    """A binary frame from the server; `sound` is in the format."""
    header = HEADER.pack(kind, FORMATS.index(sound_format), len(codes), sequence)
    return header + codes.astype("<u2").tobytes() + sound


def unpack(frame: bytes) -> tuple[int, str, np.ndarray, bytes]:
    """Parse a binary frame: kind, format, tokens uint16 [T] and sound in the format."""
    kind, sound_format, count, _ = HEADER.unpack_from(frame)
    codes = np.frombuffer(frame, "<u2", count, HEADER.size)
    return kind, FORMATS[sound_format], codes, frame[HEADER.size + 2 * count :]


def samples_of(data: bytes) -> np.ndarray:
    """A binary frame from a client, 16-bit little-endian mono PCM, as float32 [S]. Raises Refused."""
    if not data or len(data) % 2:
        raise Refused("bad_audio", f"{len(data)} bytes of audio; expected whole samples of 16 bits", POLICY)
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768


def _shown(value: Any) -> str:
    return repr(value)[:40]


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
