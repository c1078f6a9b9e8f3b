"""The page in a real browser: record, hear, cancel, lose the connection, two tabs, tokens, origins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenizer.audio import write_wav

pytestmark = [pytest.mark.browser, pytest.mark.slow]
playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
CHROMIUM = Path("/usr/bin/chromium")
TOKEN = "open sesame"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium whose microphone is a sound file, over and over."""
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}")
    wave = tmp_path_factory.mktemp("microphone") / "voice.wav"
    write_wav(wave, 0.2 * np.random.default_rng(0).standard_normal(48000).astype(np.float32), 48000)
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(
            executable_path=str(CHROMIUM),
            args=[
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                f"--use-file-for-fake-audio-capture={wave}",
                "--autoplay-policy=no-user-gesture-required",
            ],
        )
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any, server: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page in a tab of its own, with the token entered; fails where a script fails."""
    errors: list[str] = []
    context = browser.new_context()

    def open_one(token: str = TOKEN) -> Any:
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.http)
        page.fill("#token", token)
        page.press("#token", "Enter")
        return page

    yield open_one
    context.close()
    assert not errors


def wait(page: Any, expression: str, seconds: float = 30) -> None:
    """Until an expression about `focalstream`, the page's state, is true. (The page's policy forbids `eval`.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(f"(({{phase, chunks, loudest, hellos, played}}) => {expression})(focalstream)"):
        said = page.evaluate("focalstream"), page.text_content("#status")
        assert time.monotonic() < end, f"{expression}: {said}"
        page.wait_for_timeout(50)


def test_record_hear_and_download(open_page: Any, tmp_path: Path) -> None:
    page = open_page()
    wait(page, "phase === 'idle'")
    assert "language model of" in page.text_content("#loaded") and "tiny" in page.text_content("#loaded")
    page.locator("[name=seconds]").fill("2")
    page.focus("#go")
    page.keyboard.press("Enter")  # records
    wait(page, "phase === 'recording'")
    page.wait_for_timeout(600)
    page.keyboard.press("Enter")  # goes on
    wait(page, "phase === 'idle' && chunks > 0 && loudest > 0.001 && played > 8000")
    assert page.text_content("#first").endswith(" ms") and page.text_content("#underruns").isdigit()
    drawn = (
        "document.getElementById(%r).getContext('2d').getImageData(0, 0, 200, 70).data.some((v, i) => i %% 4 < 3 && v)"
    )
    assert all(page.evaluate(drawn % canvas) for canvas in ("wave", "tokens"))
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.path().stat().st_size > 44 + 2 * 16000


def test_cancel_reconnect_and_two_tabs(open_page: Any, server: Any) -> None:
    from slm.serve.protocol import GOING_AWAY, Refused

    first, second = open_page(), open_page()
    for page in (first, second):
        wait(page, "phase === 'idle'")
        page.get_by_text("An example").click()
        page.click("#go")
    for page in (first, second):
        wait(page, "phase === 'speaking' && chunks > 3 && loudest > 0.001")
    first.click("#cancel")
    wait(first, "phase === 'idle'")
    loop_close(server, Refused("stopping", "the server stops", GOING_AWAY))
    for page in (first, second):
        wait(page, "phase === 'idle' && hellos === 2")


def loop_close(server: Any, refused: Any) -> None:
    """Close all sessions, in the server's event loop."""
    for session in list(server.service.sessions):
        session._over.get_loop().call_soon_threadsafe(session.close, refused)


def test_a_wrong_token_and_a_foreign_page_get_nothing(open_page: Any, browser: Any, server: Any) -> None:
    page = open_page("open sesamf")
    page.get_by_text("That token is not right.").wait_for()
    assert page.evaluate("focalstream.hellos") == 0
    foreign = browser.new_page()
    foreign.goto(server.http.replace("127.0.0.1", "localhost") + "/healthz")  # another origin than the server's own
    closed = foreign.evaluate(
        "url => new Promise((done) => Object.assign(new WebSocket(url), "
        "{ onclose: ({ code }) => done(code), onopen: () => done(0) }))",
        server.websocket,
    )
    foreign.close()
    assert closed == 1006  # the handshake was refused
