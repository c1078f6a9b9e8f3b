"""Running a service: the socket, uvicorn, and a shutdown that lets streams finish."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn

from slm.serve.app import make_app
from slm.serve.protocol import GOING_AWAY, Refused
from slm.serve.service import Service, log
from tokenizer.errors import InputError
from tokenizer.runs.stop_signals import stop_signals

UNSENT_BYTES = 65536  # kernel send buffer of a connection: a larger one would hold a minute of speech for a slow reader
STUCK_MS = 20_000  # after which the kernel drops a peer that does not read


def bound_socket(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 means any free port. Raises InputError."""
    listener = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNSENT_BYTES)  # inherited by accepted sockets
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STUCK_MS)
        listener.bind(address)
        listener.listen()  # now, so that a second server on this port fails before it loads models
    except (OSError, OverflowError) as error:
        if listener:
            listener.close()
        raise InputError(
            f"--host {host} --port {port}: cannot listen there ({error}); expected an address of this machine and a "
            "free port"
        ) from None
    return listener


class Server(uvicorn.Server):
    """uvicorn's server. The first signal stops admission and waits for the streams; the second stops at once.

    Args:
        service: the service.
        drain_seconds: time for streams to end by themselves.
        on_start: called in the event loop once connections are accepted.
    """

    def __init__(self, service: Service, drain_seconds: float, on_start: Callable[[], None] | None = None) -> None:
        limits = service.limits
        super().__init__(
            uvicorn.Config(
                make_app(service),
                ws="websockets-sansio",
                ws_max_size=limits.message_bytes,
                ws_per_message_deflate=False,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                timeout_keep_alive=15,
                timeout_graceful_shutdown=5,
                limit_concurrency=2 * limits.connections,
            )
        )
        self._service, self._drain_seconds, self._on_start = service, drain_seconds, on_start
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._service.listen(self._stop_now)
        await super().startup(sockets)
        if self._on_start:
            self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self.stop)

    def stop(self) -> None:
        """Start the shutdown, in the event loop; a second call stops at once."""
        if self._drain is None:
            self._service.draining = True
            log("draining", streams=not self._service.idle.is_set())
            self._drain = self._loop.create_task(self._wait_for_streams())
        else:
            self.force_exit = True
            self._stop_now()

    def _stop_now(self) -> None:
        self._service.over.set()
        for session in list(self._service.sessions):
            session.close(Refused("stopping", "the server is stopping", GOING_AWAY))
        self.should_exit = True

    async def _wait_for_streams(self) -> None:
        try:
            await asyncio.wait_for(self._service.idle.wait(), self._drain_seconds)
        except (TimeoutError, asyncio.TimeoutError):
            log("cut_off")
        await asyncio.sleep(0.1)  # for sending the last chunks
        self._stop_now()


def serve(service: Service, listener: socket.socket, drain_seconds: float, on_start: Callable[[], None]) -> int:
    """Serve until a signal. Returns the exit status: 0, or 1 if the model's process died."""
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("focalstream.serve")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        with stop_signals():  # a signal after the server's handlers are gone must not interrupt the cleanup
            try:
                Server(service, drain_seconds, on_start).run(sockets=[listener])
            finally:
                service.model.close()
    finally:
        logger.removeHandler(handler)
    return 1 if service.dead else 0
