"""`serve --local`: an exported folder at /local/, with the headers for threads."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from slm.cli import main

pytest.importorskip("starlette", reason='needs pip install "focalstream[serve]"')

FILES = {
    "index.html": "<!doctype html>the page without a server",
    "focalstream.json": "{}",
    "engine/index.js": "export {};",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / "web" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "web" / name).write_text(text)
    (tmp_path / "secret.txt").write_text("not part of it")
    return tmp_path / "web"


def get(app: Any, path: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of a GET."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()  # the client stays
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": [(b"host", b"localhost")], "server": ("localhost", 80), "scheme": "http", "root_path": ""}
    asyncio.run(app(scope | {"http_version": "1.1"}, receive, send))
    headers = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:]).decode()


def app_with(folder: Path | None) -> Any:
    from slm.serve.app import make_app
    from slm.serve.protocol import Limits
    from slm.serve.service import Service

    return make_app(Service(None, Limits(), "secret", local=folder))  # type: ignore[arg-type]


def test_the_folder_is_at_local(folder: Path) -> None:
    app = app_with(folder)
    for path, name in (
        ("/local/", "index.html"),
        ("/local/focalstream.json", "focalstream.json"),
        ("/local/engine/index.js", "engine/index.js"),
    ):
        status, headers, text = get(app, path)
        assert status == 200 and text == FILES[name]
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-embedder-policy"] == "require-corp"
    status, headers, _ = get(app, "/local")
    assert status == 307 and headers["location"].endswith("/local/")  # the page's addresses are relative
    for path in ("/local/none.js", "/local/../secret.txt", "/local/%2e%2e/secret.txt"):
        assert get(app, path)[0] == 404


def test_without_the_option_nothing_is_there() -> None:
    assert get(app_with(None), "/local/")[0] == 404


def test_another_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--local", str(tmp_path)]) == 2
    assert f"--local {tmp_path}: is no folder of `focalstream export-web`" in capsys.readouterr().err
