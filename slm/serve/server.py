"""Running a service: the socket, uvicorn, and a shutdown that lets streams finish."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn

from slm.serve.app import make_app
from slm.serve.http_protocol import JsonLines, QuietWebSocket, TimedHttp, one_line_errors
from slm.serve.protocol import DIED, GOING_AWAY, Refused
from slm.serve.service import Service, log
from tokenizer.errors import InputError
from tokenizer.runs.memory import return_large_blocks
from tokenizer.runs.stop_signals import stop_signals

UNSENT_BYTES = 65536  # kernel send buffer of a connection: a larger one would hold a minute of speech for a slow reader
BACKLOG = 128  # connections that the kernel holds until they are accepted
OPEN_FILES = 16384
HANDSHAKE_SECONDS = 10.0  # of TLS
STUCK_MS = 20_000  # after which the kernel drops a peer that does not read
TELL_SECONDS = 1.5  # at most, for sessions to tell their clients why the server ends


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
        root_path: the path below which a proxy shows the server.
        certificate: files of a TLS certificate and its key; None: no TLS.
    """

    def __init__(
        self,
        service: Service,
        drain_seconds: float,
        on_start: Callable[[], None] | None = None,
        root_path: str = "",
        certificate: tuple[str, str] | None = None,
    ) -> None:
        limits = service.limits
        idle: dict[TimedHttp, None] = {}
        super().__init__(
            uvicorn.Config(
                make_app(service, root_path),
                http=partial(TimedHttp, idle=idle),  # type: ignore[arg-type]
                ws=QuietWebSocket,
                backlog=BACKLOG,
                ssl_certfile=certificate and certificate[0],
                ssl_keyfile=certificate and certificate[1],
                ws_max_size=limits.message_bytes,
                ws_per_message_deflate=False,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                timeout_keep_alive=15,
                timeout_graceful_shutdown=5,
            )
        )
        self._service, self._drain_seconds, self._on_start = service, drain_seconds, on_start
        self._drain: asyncio.Task[None] | None = None
        self._exit: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(one_line_errors(log))
        self._service.listen(self._stop_now)
        await super().startup([])  # uvicorn listens without a limit for TLS handshakes, which then may take a minute
        for listener in sockets or []:
            tls = self.config.ssl
            seconds = HANDSHAKE_SECONDS if tls else None
            server = await self._loop.create_server(
                self._make_protocol, sock=listener, ssl=tls, backlog=BACKLOG, ssl_handshake_timeout=seconds
            )
            self.servers.append(server)
        if self._on_start:
            self._on_start()

    def _make_protocol(self) -> asyncio.Protocol:
        config, state = self.config, self.lifespan.state
        return config.http_protocol_class(config=config, server_state=self.server_state, app_state=state)  # type: ignore[call-arg]

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
        reason = Refused("stopping", "the server is stopping", GOING_AWAY)
        if self._service.dead:
            reason = Refused("model_died", "the model's process died; the server ends with an error", DIED)
        for session in list(self._service.sessions):
            session.close(reason)
        self._exit = self._loop.create_task(self._exit_when_told())

    async def _exit_when_told(self) -> None:
        """uvicorn closes whatever is open as if for a restart, so sessions first tell their clients why they end."""
        until = self._loop.time() + TELL_SECONDS
        while self._service.sessions and not self.force_exit and self._loop.time() < until:
            await asyncio.sleep(0.01)
        self.should_exit = True

    async def _wait_for_streams(self) -> None:
        try:
            await asyncio.wait_for(self._service.idle.wait(), self._drain_seconds)
        except (TimeoutError, asyncio.TimeoutError):
            log("cut_off")
        await asyncio.sleep(0.1)  # for sending the last chunks
        self._stop_now()


def raise_file_limit() -> None:
    """Allow as many open files as the system lets this process have, up to `OPEN_FILES`: sockets are files."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def check_certificate(certificate: str | None, key: str | None) -> tuple[str, str] | None:
    """The files of a certificate and its key. Raises InputError unless both are given and fit, or none is given."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise InputError("--certfile and --keyfile belong together; give both, or none for http")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except OSError as error:  # also ssl.SSLError
        raise InputError(
            f"--certfile {certificate} --keyfile {key}: not a certificate and its key as PEM files without a password "
            f"({error.strerror or error})"
        ) from None
    return certificate, key


def serve(
    service: Service,
    listener: socket.socket,
    drain_seconds: float,
    on_start: Callable[[], None],
    root_path: str = "",
    certificate: tuple[str, str] | None = None,
) -> int:
    """Serve until a signal. Returns the exit status: 0, or 1 if the model's process died."""
    raise_file_limit()
    return_large_blocks()
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("focalstream.serve")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    uvicorn_logger = logging.getLogger("uvicorn.error")
    uvicorn_logger.handlers, uvicorn_logger.propagate = [JsonLines(log)], False
    try:
        with stop_signals():  # a signal after the server's handlers are gone must not interrupt the cleanup
            try:
                Server(service, drain_seconds, on_start, root_path, certificate).run(sockets=[listener])
            finally:
                service.model.close()
    finally:
        logger.removeHandler(handler)
    return 1 if service.dead else 0
