"""The state that all connections share: the model's process, the receivers of events, limits, metrics and logs."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import itertools
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from slm.serve.messages import Command, Done, Event, Sound
from slm.serve.metrics import ServerMetrics
from slm.serve.model_process import ModelProcess
from slm.serve.protocol import GOING_AWAY, Limits, Refused

BACKLOG = 512  # commands on their way to the model, above which no client's messages are read
IDLE_SECONDS = 10.0  # after which a WebSocket without a stream may be closed for another client
LOG = logging.getLogger("focalstream.serve")


class Connection(Protocol):
    """A WebSocket connection, as the server ends it (`slm.serve.session.Session`)."""

    @property
    def idle_seconds(self) -> float:
        """Since when it has neither a stream nor sent anything; 0 while it has a stream."""

    def close(self, refused: Refused) -> None: ...


@dataclass
class Service:
    """One server.

    Args:
        model: the running process.
        limits: for one client.
        auth_token: required of clients; None: no token.
        origins: of pages other than the server's own that may connect; "*": all.
        wrong_token_seconds: before a wrong token is refused, so that guessing takes long.
        local: a folder of `focalstream export-web` to serve at /local; None: nothing is there.
    """

    model: ModelProcess
    limits: Limits = field(default_factory=Limits)
    auth_token: str | None = None
    origins: tuple[str, ...] = ()
    local: Path | None = None
    metrics: ServerMetrics = field(default_factory=ServerMetrics)
    draining: bool = False  # no new streams: the server is shutting down
    dead: bool = False  # the model's process has died
    wrong_token_seconds: float = 1.0

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._receivers: dict[int, Callable[[Event], None]] = {}
        self.idle = asyncio.Event()  # no stream is open
        self.idle.set()
        self.over = asyncio.Event()  # the server stops now: requests for files are aborted
        self.sessions: set[Connection] = set()
        self.held_bytes = 0  # of uploaded bodies in memory
        self.requests = 0  # for whole files

    def listen(self, on_death: Callable[[], None]) -> None:
        """Start passing on the model's events in the running event loop."""

        def die() -> None:
            self.dead = True
            log("model_died")
            on_death()

        self.model.listen(self._hand_on, die)

    def open(self, receiver: Callable[[Event], None]) -> int:
        """Register a new stream and return its number; its events go to `receiver` until `Done`."""
        number = next(self._numbers)
        self._receivers[number] = receiver
        self.idle.clear()
        self.metrics.streams.inc()
        return number

    def send(self, command: Command) -> None:
        self.model.send(command)

    async def room(self) -> None:
        """Wait until the model's process keeps up with the commands of its clients."""
        while self.model.backlog > BACKLOG:
            await asyncio.sleep(0.02)

    def forget(self, number: int) -> None:
        """Remove the receiver of a stream."""
        if self._receivers.pop(number, None):
            self.metrics.streams.dec()
        if not self._receivers:
            self.idle.set()

    def knows(self, token: bytes | None) -> bool:
        """Whether the token is the required one."""
        return self.auth_token is None or hmac.compare_digest(token or b"", os.fsencode(self.auth_token))

    async def admits(self, token: bytes | None, address: str) -> bool:
        """Whether the token is the required one; a wrong one is logged and answered late."""
        if self.knows(token):
            return True
        if token is not None:
            log("wrong_token", address=address)
            await asyncio.sleep(self.wrong_token_seconds)
        return False

    def has_room(self) -> bool:
        """Whether another WebSocket may connect, perhaps in place of an idle one."""
        return len(self.sessions) < self.limits.connections or self._longest_idle() is not None

    def make_room(self) -> None:
        """Where there are as many WebSockets as may be, close the longest idle one."""
        if len(self.sessions) >= self.limits.connections and (idle := self._longest_idle()):
            idle.close(Refused("idle", "closed for another client; connect again when you need it", GOING_AWAY))
            self.sessions.discard(idle)

    def _longest_idle(self) -> Connection | None:
        idle = max(self.sessions, key=lambda session: session.idle_seconds, default=None)
        return idle if idle is not None and idle.idle_seconds >= IDLE_SECONDS else None

    def trusts(self, origin: str | None, host: str | None) -> bool:
        """Whether a page of this origin may connect. Programs send no origin and are checked by their token.

        The server's own page may connect, but without a token only under an IP address or localhost: any site can
        point its name at this server (DNS rebinding), and its pages then have the same origin.
        """
        if origin is None or "*" in self.origins or origin in self.origins:
            return True
        return host is not None and origin.partition("://")[2] == host and (bool(self.auth_token) or _is_address(host))

    def _hand_on(self, event: Event) -> None:
        if isinstance(event, Sound) and event.new:
            self.metrics.speech(event)
        if isinstance(event, Done):
            self.metrics.done(event)
        receiver = self._receivers.get(event.stream)
        if isinstance(event, Done):
            self.forget(event.stream)
        if receiver:  # otherwise it was cancelled
            receiver(event)


def _is_address(host: str) -> bool:
    """Whether a Host header is localhost or an IP address, with or without a port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:  # "["
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost"
    return True


def log(event: str, **values: Any) -> None:
    """Log one JSON object on a line of standard error. Never audio, codes or access tokens."""
    LOG.info(json.dumps({"at": round(time.time(), 3), "event": event, **values}))
