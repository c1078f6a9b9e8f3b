"""Connections before and between requests, and what answers carry.

uvicorn waits for a request without end, and counts a silent connection as a user. Here a connection that does not send
a whole request head in time is closed. When too many are silent, the one that has been silent longest is closed for a
new one. So a crowd of idle sockets keeps nobody out, and `/healthz` answers.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

HEAD_SECONDS = 10.0  # from the connection, or from the end of the answer before, to the end of a request's head
IDLE_CONNECTIONS = 256  # without a request, before the oldest is closed
SMALL_FRAMES = 1000  # pings and fragments of a WebSocket between two of its messages
READ_BYTES = 8192  # of a WebSocket that are parsed before other work: they can hold a thousand frames
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class TimedHttp(H11Protocol):
    """An HTTP connection that is closed when no request comes.

    Args:
        idle: the connections of this server that have no request, the longest idle first.
        options: of uvicorn.
    """

    def __init__(self, *, idle: dict[TimedHttp, None], **options: Any) -> None:
        super().__init__(**options)
        self._idle = idle
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self._idle) >= IDLE_CONNECTIONS:
            oldest = next(iter(self._idle))
            oldest._is_busy()
            oldest.transport.abort()
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._timer and self.cycle is not None and not self.cycle.response_complete:
            self._is_busy()

    def on_response_complete(self) -> None:
        self._expect_request()
        super().on_response_complete()
        if not self.cycle.response_complete:  # the next request had arrived already
            self._is_busy()

    def handle_websocket_upgrade(self, event: Any) -> None:
        self._is_busy()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_busy()
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        self._is_busy()
        self._idle[self] = None
        self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _is_busy(self) -> None:
        """It has a request, or is gone."""
        self._idle.pop(self, None)
        if self._timer:
            self._timer.cancel()
            self._timer = None


class QuietWebSocket(WebSocketsSansIOProtocol):
    """A WebSocket whose pings and fragments are metered, and whose invalid text ends it without a traceback in the
    log."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._small_frames = 0  # pings and fragments since the last whole message

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        transport.max_size = READ_BYTES  # type: ignore[attr-defined]  # asyncio's: read at once

    def data_received(self, data: bytes) -> None:
        for begin in range(0, len(data), READ_BYTES):  # TLS brings more at once
            if not self.transport.is_closing():
                super().data_received(data[begin : begin + READ_BYTES])

    def handle_ping(self) -> None:
        if self._may_go_on():
            super().handle_ping()

    def handle_cont(self, event: Any) -> None:
        if self._may_go_on():
            super().handle_cont(event)

    def _may_go_on(self) -> bool:
        self._small_frames += 1
        if self._small_frames > SMALL_FRAMES:
            self.transport.abort()
        return self._small_frames <= SMALL_FRAMES

    def send_receive_event_to_app(self) -> None:
        self._small_frames = 0
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = [b"\xef\xbf\xbd"]  # not JSON, so the session refuses it
        super().send_receive_event_to_app()


class SecurityHeaders:
    """ASGI: adds the headers above to every HTTP answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in {**SECURITY_HEADERS, "Cache-Control": "no-cache"}.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class BelowPath:
    """ASGI: the server below a path, whether the proxy before it removes that path or not.

    Args:
        app: the application, whose own links are relative.
        path: such as "/speech"; "": none.
    """

    def __init__(self, app: ASGIApp, path: str) -> None:
        self._app, self._path = app, path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._path and scope["type"] in ("http", "websocket"):
            if scope["path"] == self._path and scope["type"] == "http":  # relative links need the last "/"
                await RedirectResponse(f"{self._path}/")(scope, receive, send)
                return
            if scope["path"].startswith(f"{self._path}/"):
                scope = {**scope, "path": scope["path"][len(self._path) :]}
        await self._app(scope, receive, send)


class JsonLines(logging.Handler):
    """uvicorn's messages as lines of the server's log; a traceback only where this program failed."""

    def __init__(self, log: Callable[..., None]) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        values = {"message": record.getMessage().splitlines()[0][:200]}
        if record.exc_info and "ASGI" in record.msg:
            values["traceback"] = logging.Formatter().formatException(record.exc_info)
        self._log("http", **values)


def one_line_errors(log: Callable[..., None]) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """An event loop's exception handler: a line for each kind of error a second, not a traceback for each error.

    At the limit of open files, the event loop reports every connection that it cannot accept.
    """
    last: dict[str, float] = {}

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        kind = f"{context.get('message')}: {error!r}"
        if loop.time() - last.get(kind, -1.0) < 1.0:
            return
        last.clear()
        last[kind] = loop.time()
        values = {"message": kind[:300]}
        if error is not None and not isinstance(error, OSError):  # of this program
            values["traceback"] = "".join(traceback.format_exception(error))
        log("event_loop", **values)

    return handle
