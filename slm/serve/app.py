"""The server's routes: the page, the WebSocket, whole files, health and metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import Scope
from starlette.websockets import WebSocket

from pipelines.pages.html import base_css
from slm.serve.assets import EXAMPLES, PAGE, example_wav
from slm.serve.files import continue_file, decode_file, encode_file
from slm.serve.protocol import Refused
from slm.serve.service import Service, log
from slm.serve.session import Session

Endpoint = Callable[[Service, Request], Awaitable[Response]]

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

ISOLATED = {**HEADERS, "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
del ISOLATED["Content-Security-Policy"]  # the page has its own


class LocalPage(StaticFiles):
    """The page without a server, which `focalstream export-web` wrote, with the headers that let it have threads."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(ISOLATED)
        return response


def make_app(service: Service) -> Starlette:
    """The ASGI application for a service."""

    async def stream(socket: WebSocket) -> None:
        origin, host = socket.headers.get("origin"), socket.headers.get("host")
        reason = None
        if not service.trusts(origin, host):
            reason = "bad_origin"
        elif len(service.sessions) >= service.limits.connections:
            reason = "too_many_connections"
        elif service.draining or service.dead:
            reason = "stopping"
        if reason:
            service.metrics.refused.labels(reason).inc()
            log("refused", reason=reason)
            await socket.close()  # before accept: HTTP 403
            return
        await socket.accept()
        session = Session(socket, service)
        service.sessions.add(session)
        service.metrics.connections.inc()
        try:
            await session.run()
        finally:
            service.sessions.discard(session)
            service.metrics.connections.dec()

    async def page(_: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers=HEADERS)

    async def base_style(_: Request) -> Response:
        return Response(base_css(), media_type="text/css", headers=HEADERS)

    async def asset(request: Request) -> Response:
        path = PAGE / request.path_params["name"]
        known = path.parent == PAGE and path.suffix in (".js", ".css") and path.is_file()
        return FileResponse(path, headers=HEADERS) if known else PlainTextResponse("not found\n", 404)

    async def examples(_: Request) -> Response:
        return JSONResponse(EXAMPLES)

    async def example(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in EXAMPLES:
            return PlainTextResponse("not found\n", 404)
        return Response(example_wav(name), media_type="audio/wav")

    async def healthz(_: Request) -> Response:
        state = "model died" if service.dead else "draining" if service.draining else "ok"
        return PlainTextResponse(f"{state}\n", 200 if state == "ok" else 503)

    async def metrics(request: Request) -> Response:
        check_token(service, request)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        service.metrics.refused.labels(error.code).inc()
        return JSONResponse({"code": error.code, "message": error.message}, error.close or 400)

    def guarded(work: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            check_token(service, request)
            if not service.trusts(request.headers.get("origin"), request.headers.get("host")):
                raise Refused("bad_origin", "this page's origin is not allowed", 403)
            if service.draining or service.dead:
                raise Refused("stopping", "the server is stopping", 503)
            return await work(service, request)

        return endpoint

    routes: list[BaseRoute] = [
        Route("/", page),
        Route("/page/base.css", base_style),
        Route("/page/{name}", asset),
        Route("/examples", examples),
        Route("/examples/{name}.wav", example),
        Route("/healthz", healthz),
        Route("/metrics", metrics),
        Route("/v1/encode", guarded(encode_file), methods=["POST"]),
        Route("/v1/decode", guarded(decode_file), methods=["POST"]),
        Route("/v1/continue", guarded(continue_file), methods=["POST"]),
        WebSocketRoute("/v1/stream", stream),
    ]
    if service.local is not None:
        routes.append(Mount("/local", LocalPage(directory=service.local, html=True)))
    return Starlette(routes=routes, exception_handlers={Refused: refused})


def check_token(service: Service, request: Request) -> None:
    """Raise Refused unless the request has the token."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if not service.knows(token.encode("latin-1") if kind.lower() == "bearer" else None):  # the bytes as received
        raise Refused("bad_token", "expected the header Authorization: Bearer TOKEN", 401)
