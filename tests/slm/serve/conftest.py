"""A server with tiny random models, listening on loopback."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from slm.checkpoint import save_lm
from slm.model.transformer import LanguageModel, ModelConfig
from slm.vocabulary import Vocabulary
from tests.slm.serve.browser import PATIENCE, WATCHED_MICROPHONE, Wire, chromium, wait
from tokenizer import Codec
from tokenizer.audio import write_wav

TOKEN = "open sesame"
ROOT = Path(__file__).resolve().parents[3]


class Running(NamedTuple):
    """A server of this process. Its limits may be replaced: each connection reads them when it begins."""

    service: object
    port: int

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def websocket(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/stream"


@pytest.fixture(scope="session")
def random_lm_dir(tiny_codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with random weights for the tiny codec."""
    torch.manual_seed(1)
    vocabulary = Vocabulary(tiny_codec.codebook_size, tiny_codec.token_rate, "tiny", tiny_codec.fingerprint)
    config = ModelConfig(width=32, layers=2, heads=4, kv_heads=2, ffn_width=48, context=64)
    folder = tmp_path_factory.mktemp("random_lm")
    save_lm(LanguageModel(config, vocabulary.size), vocabulary, folder)
    return folder


@pytest.fixture(scope="session")
def server(tiny_codec_dir: Path, random_lm_dir: Path) -> Iterator[Running]:
    """Two slots, a queue of two, prompts of 4 s, a token."""
    pytest.importorskip("starlette", reason='needs pip install "focalstream[serve]"')
    from slm.serve.model_process import ModelProcess, ModelSettings
    from slm.serve.protocol import Limits
    from slm.serve.server import Server, bound_socket
    from slm.serve.service import Service

    model = ModelProcess(
        ModelSettings(str(tiny_codec_dir), "torch", "fp32", "cpu", str(random_lm_dir), 2, 2, 0.24, threads=1)
    )
    service = Service(model, Limits(prompt_seconds=4.0), TOKEN, ("https://friend.example",))
    listener = bound_socket("127.0.0.1", 0)
    started = threading.Event()
    uvicorn_server = Server(service, 0.1, started.set)
    thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [listener]})
    thread.start()
    assert started.wait(600)  # the model process loads PyTorch
    yield Running(service, listener.getsockname()[1])
    uvicorn_server._loop.call_soon_threadsafe(uvicorn_server.stop)
    thread.join(120)
    model.close()
    assert not thread.is_alive() and not service.sessions


Work = Callable[[str, int], Coroutine[Any, Any, None]]


@pytest.fixture
def run_server(tmp_path: Path, tiny_codec_dir: Path, random_lm_dir: Path) -> Callable[[Work], tuple[int, str]]:
    """`focalstream serve` as a process, `work(url, pid)`, and then its exit status and standard error."""

    def run(work: Work) -> tuple[int, str]:
        command = [sys.executable, "-m", "slm.cli", "serve", "--codec", str(tiny_codec_dir)]
        command += ["--lm", str(random_lm_dir), "--port", "0", "--engine", "torch"]
        with (tmp_path / "log").open("w+") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
            try:
                assert process.stdout is not None
                process.stdout.readline()
                url = process.stdout.readline().strip().replace("http", "ws") + "v1/stream"
                asyncio.run(work(url, process.pid))
                status = process.wait(120)
            finally:
                process.kill()
            log.seek(0)
            return status, log.read()

    return run


async def until_draining(url: str) -> None:
    """Until a server has heard that it is to stop: a second signal before that would be one with the first."""

    def is_draining() -> bool:
        try:
            with urllib.request.urlopen(f"http://{url.split('/')[2]}/healthz", timeout=120):
                return False
        except urllib.error.HTTPError as error:
            return error.code == 503
        except OSError:  # it has stopped already
            return True

    while not await asyncio.to_thread(is_draining):
        await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium whose microphone is a sound file, over and over."""
    wave = tmp_path_factory.mktemp("microphone") / "voice.wav"
    write_wav(wave, 0.2 * np.random.default_rng(0).standard_normal(48000).astype(np.float32), 48000)
    yield from chromium(str(wave))


@pytest.fixture
def open_page(browser: Any, server: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page in a tab of its own, with the token entered and taken; fails where a script fails."""
    errors: list[str] = []
    context = browser.new_context()
    context.set_default_timeout(PATIENCE * 1000)

    def open_one(token: str = TOKEN, wire: Wire | None = None) -> Any:
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.add_init_script(WATCHED_MICROPHONE)
        if wire:
            page.route_web_socket("**/v1/stream", wire)
        page.goto(server.http)
        page.fill("#token", token)
        page.press("#token", "Enter")
        if token == TOKEN:
            wait(page, "phase === 'idle'")
        return page

    yield open_one
    context.close()
    assert not errors
