"""The server's routes: the page, the WebSocket, whole files, health and metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope
from starlette.websockets import WebSocket

from pipelines.pages.html import base_css
from slm.serve.assets import EXAMPLES, PAGE, example_wav
from slm.serve.files import continue_file, decode_file, encode_file
from slm.serve.http_protocol import BelowPath, SecurityHeaders
from slm.serve.protocol import Refused
from slm.serve.service import Service, log
from slm.serve.session import Session

Endpoint = Callable[[Service, Request], Awaitable[Response]]

TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
REQUESTS = 64  # for whole files at once, however far they are
ISOLATED = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Content-Security-Policy": "frame-ancestors 'self'",  # the page has its own for the rest
}


class LocalPage(StaticFiles):
    """The page without a server, which `focalstream export-web` wrote, with the headers that let it have threads."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(ISOLATED)
        return response


def make_app(service: Service, root_path: str = "") -> ASGIApp:
    """The ASGI application for a service; `root_path`: the path below which a proxy shows it."""
    files = {path.name: path for path in PAGE.iterdir() if path.suffix in TYPES}

    async def stream(socket: WebSocket) -> None:
        address = socket.client.host if socket.client else ""
        origin, host = socket.headers.get("origin"), socket.headers.get("host")
        if reason := refusal(service, origin, host):
            service.metrics.refused.labels(reason).inc()
            log("refused", reason=reason, origin=(origin or "")[:100], address=address)
            await socket.close()  # before accept: HTTP 403
            return
        service.make_room()
        await socket.accept()
        session = Session(socket, service, address)
        service.sessions.add(session)
        service.metrics.connections.inc()
        try:
            await session.run()
        finally:
            service.sessions.discard(session)
            service.metrics.connections.dec()

    async def page(_: Request) -> Response:
        return await asset_named("index.html")

    async def base_style(_: Request) -> Response:
        return Response(base_css(), media_type="text/css")

    async def asset(request: Request) -> Response:
        return await asset_named(request.path_params["name"])

    async def asset_named(name: str) -> Response:
        if name not in files:
            return PlainTextResponse("not found\n", 404)
        return Response(files[name].read_bytes(), media_type=TYPES[files[name].suffix])

    async def examples(_: Request) -> Response:
        return JSONResponse(EXAMPLES)

    async def example(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in EXAMPLES:
            return PlainTextResponse("not found\n", 404)
        return Response(await run_in_threadpool(example_wav, name), media_type="audio/wav")

    async def status(request: Request) -> Response:
        """Why a page's WebSocket is refused, which browsers do not tell their pages."""
        origin, host = request.query_params.get("origin"), request.headers.get("host")
        return JSONResponse({"refused": refusal(service, origin, host), "token": service.auth_token is not None})

    async def healthz(_: Request) -> Response:
        state = "model died" if service.dead else "draining" if service.draining else "ok"
        return PlainTextResponse(f"{state}\n", 200 if state == "ok" else 503)

    async def metrics(request: Request) -> Response:
        await check_token(service, request)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        service.metrics.refused.labels(error.code).inc()
        return JSONResponse({"code": error.code, "message": error.message}, error.close or 400)

    def guarded(work: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            await check_token(service, request)
            if not service.trusts(request.headers.get("origin"), request.headers.get("host")):
                raise Refused("bad_origin", "this page's origin is not allowed", 403)
            if service.draining or service.dead:
                raise Refused("stopping", "the server is stopping", 503)
            if service.requests >= REQUESTS:
                raise Refused("busy", "too many requests at once; try again in a moment", 503)
            service.requests += 1
            try:
                return await work(service, request)
            finally:
                service.requests -= 1

        return endpoint

    routes: list[BaseRoute] = [
        Route("/", page),
        Route("/page/base.css", base_style),
        Route("/page/{name}", asset),
        Route("/examples", examples),
        Route("/examples/{name}.wav", example),
        Route("/v1/status", status),
        Route("/healthz", healthz),
        Route("/metrics", metrics),
        Route("/v1/encode", guarded(encode_file), methods=["POST"]),
        Route("/v1/decode", guarded(decode_file), methods=["POST"]),
        Route("/v1/continue", guarded(continue_file), methods=["POST"]),
        WebSocketRoute("/v1/stream", stream),
    ]
    if service.local is not None:
        routes.append(Mount("/local", LocalPage(directory=service.local, html=True)))
    app: ASGIApp = Starlette(routes=routes, exception_handlers={Refused: refused})
    if service.origins:
        headers = ["authorization", "content-type"]
        app = CORSMiddleware(app, service.origins, allow_methods=["GET", "POST"], allow_headers=headers)
    return SecurityHeaders(BelowPath(app, root_path))


def refusal(service: Service, origin: str | None, host: str | None) -> str | None:
    """Why a WebSocket from a page of this origin is refused; None: it is not."""
    if not service.trusts(origin, host):
        return "bad_origin"
    if service.dead:
        return "model_died"
    if service.draining:
        return "stopping"
    return "too_many_connections" if not service.has_room() else None


async def check_token(service: Service, request: Request) -> None:
    """Raise Refused unless the request has the token."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    given = token.encode("latin-1") if kind.lower() == "bearer" else None  # the bytes as received
    if not await service.admits(given, request.client.host if request.client else ""):
        raise Refused("bad_token", "expected the header Authorization: Bearer TOKEN", 401)
