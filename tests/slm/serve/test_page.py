"""The page in a real browser: record, hear, cancel, lose the connection, two tabs, tokens, origins, slow networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.slm.serve.browser import LIVE_TRACKS, Wire, close_sessions, until, wait

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_record_hear_and_download(open_page: Any, tmp_path: Path) -> None:
    page = open_page()
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
    first, second = open_page(), open_page()
    for page in (first, second):
        page.get_by_text("An example").click()
        page.click("#go")
    wait(first, "phase === 'speaking' && chunks > 3 && loudest > 0.001")
    first.click("#cancel")  # at once: on a busy machine its stream may end before the second has begun
    wait(first, "phase === 'idle'")
    wait(second, "chunks > 3 && loudest > 0.001")
    close_sessions(server)
    for page in (first, second):
        wait(page, "phase === 'idle' && hellos === 2")


def test_a_wrong_token_and_a_foreign_page_get_nothing(open_page: Any, browser: Any, server: Any) -> None:
    page = open_page("open sesamf")
    page.get_by_text("Wrong token.").wait_for()
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


@pytest.mark.parametrize("source", ["microphone", "example"])
def test_what_comes_for_a_cancelled_stream_is_ignored(open_page: Any, source: str) -> None:
    wire = Wire()
    page = open_page(wire=wire)
    page.locator("[name=seconds]").fill("1")
    page.click(f"label:has([value={source}])")  # the radio button itself is invisible

    def begin_and_cancel(nth: int) -> None:
        wire.stops_at = "ready"
        page.click("#go")
        wait(page, "phase === 'waiting'")
        until(page, lambda: wire.heard.count("ready") == nth, "a ready that is on its way")
        page.click("#cancel")
        wait(page, "phase === 'idle'")

    begin_and_cancel(1)
    until(page, lambda: wire.heard.count("done") == 1, "the end that answers the cancel")
    wire.release()
    assert page.evaluate("focalstream.phase") == "idle" and page.text_content("#status") == "Cancelled."

    begin_and_cancel(2)
    page.click("#go")  # another at once: neither the ready nor the end of the one before is its own
    wait(page, "phase === 'waiting'")
    until(page, lambda: wire.heard.count("ready") == 3, "its own ready")
    wire.release()
    if source == "microphone":
        wait(page, "phase === 'recording'")
        assert page.evaluate(LIVE_TRACKS) == 1
        until(page, lambda: wire.spoken > 20000, "half a second of speech")
        page.click("#go")
    wait(page, "phase === 'idle' && chunks > 0")
    assert (
        page.text_content("#status").startswith(("Done.", "The model ended the speech."))
        and page.evaluate(LIVE_TRACKS) == 0
    )
    assert wire.told == ["start", "cancel", "start", "cancel", "start", "continue"]
    assert "error" not in wire.heard[1:]  # the first: no token


def test_a_cancel_that_crosses_the_end_leaves_the_next_stream_alone(open_page: Any) -> None:
    wire = Wire()
    page = open_page(wire=wire)
    page.locator("[name=seconds]").fill("1")
    page.get_by_text("An example").click()
    wire.stops_at = "done"
    page.click("#go")
    until(page, lambda: "done" in wire.heard, "the end of the first")
    page.click("#cancel")  # the server has no stream any more, and does not answer
    wait(page, "phase === 'idle'")
    page.click("#go")
    until(page, lambda: wire.heard.count("ready") == 2, "the second's ready")
    wire.release()
    until(page, lambda: wire.heard.count("done") == 2, "the second's end")
    wait(page, "phase === 'idle'")
    second = wire.heard[len(wire.heard) - wire.heard[::-1].index("ready") :]
    assert page.evaluate("focalstream.chunks") == second.count("speech") > 0
    assert wire.told == ["start", "continue", "cancel", "start", "continue"]
