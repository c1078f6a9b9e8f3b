"""Folders that `export-web` writes, served as any static host would, and pages in a real browser."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slm.checkpoint import locate
from slm.web.export import export_web
from slm.web.runtime import cached_package, runtime_files
from tests.slm.serve.browser import PATIENCE, WATCHED_MICROPHONE
from tests.slm.serve.conftest import browser, random_lm_dir  # noqa: F401
from tokenizer import Codec


@pytest.fixture(scope="session")
def runtime() -> dict[str, bytes]:
    """onnxruntime-web, where `focalstream export-web` or `make web` has fetched it before."""
    if cached_package() is None:
        pytest.skip("needs onnxruntime-web in the cache: run `make web` once")
    return runtime_files()


class Host:
    """A static host without any headers of its own, until it is `down`."""

    def __init__(self, folder: Path) -> None:
        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}/"

    def stop(self) -> None:
        """Refuse all further connections."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


@pytest.fixture
def host() -> Iterator[Callable[[Path], Host]]:
    """Serves a folder."""
    hosts: list[Host] = []

    def serve(folder: Path) -> Host:
        hosts.append(Host(folder))
        return hosts[-1]

    yield serve
    for started in hosts:
        started.stop()


@pytest.fixture(scope="session")
def tiny_folder(
    tiny_codec: Codec,
    random_lm_dir: Path,  # noqa: F811
    runtime: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The tiny models in float32."""
    folder = tmp_path_factory.mktemp("web") / "tiny"
    export_web(tiny_codec, random_lm_dir, "tiny", "tiny", folder, "fp32", runtime)
    return folder


@pytest.fixture(scope="session")
def small_folder(runtime: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The shipped models in a precision."""

    @functools.cache
    def of(precision: str) -> Path:
        folder = tmp_path_factory.mktemp("web") / precision
        export_web(Codec.from_pretrained("small"), locate("small"), "small", "small", folder, precision, runtime)
        return folder

    return of


@pytest.fixture
def damaged(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_folder` to be damaged."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


@pytest.fixture
def open_tab(browser: Any) -> Iterator[Callable[[str], Any]]:  # noqa: F811
    """Opens addresses as tabs of one profile; fails where a script fails."""
    errors: list[str] = []
    context = browser.new_context()
    context.set_default_timeout(PATIENCE * 1000)

    def open_one(address: str) -> Any:
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.add_init_script(WATCHED_MICROPHONE)
        page.goto(address)
        return page

    yield open_one
    context.close()
    assert not errors


@pytest.fixture
def run_script(open_tab: Callable[[str], Any], host: Callable[[Path], Host]) -> Callable[..., Any]:
    """Runs JavaScript with everything that a folder's engine exports, and the argument as `given`."""

    def run(folder: Path, script: str, given: Any = None) -> Any:
        page = open_tab(host(folder).address + "LICENCES.txt")  # a page of that origin without scripts
        names = "Codec, Continuation, InputError, LanguageModel, RandomStream, Resampler, Sampling, draw, loadModels"
        body = f"const {{ {names} }} = await import('/engine/index.js'); {script}"
        # As text: lists of a hundred thousand numbers would take a minute each way.
        packed = f"async (text) => JSON.stringify(await (async (given) => {{ {body} }})(JSON.parse(text)))"
        return json.loads(page.evaluate(packed, json.dumps(given)))

    return run
