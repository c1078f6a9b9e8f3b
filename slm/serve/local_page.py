"""The page without a server, at /local: a folder that `focalstream export-web` wrote, with the headers for threads."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from tokenizer.errors import InputError

HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",  # with the next: pages may share memory between threads
    "Cross-Origin-Embedder-Policy": "require-corp",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class LocalPage(StaticFiles):
    """The ASGI application of the folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder, html=True)

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def check_folder(folder: Path) -> None:
    """Raise InputError unless `focalstream export-web` wrote it."""
    if not (folder / "focalstream.json").is_file():
        raise InputError(f"--local {folder}: is no folder of `focalstream export-web`; make one with that command")
