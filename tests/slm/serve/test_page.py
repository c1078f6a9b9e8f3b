"""The page in a real browser: record, hear, cancel, lose the connection, two tabs, tokens, origins, slow networks,
impatient fingers, keyboards, and what it takes to be read and pressed by everybody."""

from __future__ import annotations

import json
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

# Notes the tracks of every microphone that is opened; with `asks` set, each waits at a question that the test answers.
WATCHED_MICROPHONE = """
Object.assign(window, { asks: false, asked: [], tracks: [] });
const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (wanted) => {
  if (asks && !(await new Promise((answer) => asked.push(answer)))) throw new Error("not allowed");
  const stream = await open(wanted);
  tracks.push(...stream.getTracks());
  return stream;
};
"""
LIVE_TRACKS = "tracks.filter((track) => track.readyState === 'live').length"

# The contrast of all text that is shown with what is behind it, by WCAG 2.2: [ratio, text].
CONTRASTS = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= 10 ? v / 3294.6 : ((v + 14.025) / 269.025) ** 2.4);
  const light = (colour) => parts(colour).slice(0, 3).map(linear).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0.05);
  const behind = (e) => (parts(getComputedStyle(e).backgroundColor)[3] === 0 ? behind(e.parentElement) : getComputedStyle(e).backgroundColor);
  const hasText = (e) => e.matches("[type=number], select") || [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  return [...document.body.querySelectorAll("*")].filter((e) => e.checkVisibility() && hasText(e)).map((e) => {
    const ratio = light(getComputedStyle(e).color) / light(behind(e));
    return [Math.max(ratio, 1 / ratio), e.textContent || e.id];
  });
}"""  # noqa: E501


class Wire:
    """Between page and server: notes what passes, and holds back what the server sends, as a slow network does."""

    def __init__(self) -> None:
        self.told: list[str] = []  # types of the page's control messages, but for its hellos
        self.spoken = 0  # bytes of its prompts
        self.heard: list[str] = []  # types of the server's messages, delivered or not; sound is "prompt" or "speech"
        self.late: list[str | bytes] = []
        self.stops_at = ""  # a type: from the first of these on all is held back
        self.holds = False

    def __call__(self, route: Any) -> None:
        self.route, self.server = route, route.connect_to_server()
        route.on_message(self.take)
        self.server.on_message(self.bring)

    def take(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            self.spoken += len(message)
        elif (kind := json.loads(message)["type"]) != "hello":
            self.told.append(kind)
        self.server.send(message)

    def bring(self, message: str | bytes) -> None:
        kind = json.loads(message)["type"] if isinstance(message, str) else ("prompt", "speech")[message[0] - 1]
        self.heard.append(kind)
        self.holds |= kind == self.stops_at
        self.late.append(message)
        self.deliver()

    def deliver(self) -> None:
        while self.late and not self.holds:
            self.route.send(self.late.pop(0))

    def release(self) -> None:
        self.holds, self.stops_at = False, ""
        self.deliver()


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
    """Opens the page in a tab of its own, with the token entered and taken; fails where a script fails."""
    errors: list[str] = []
    context = browser.new_context()

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


def wait(page: Any, expression: str, seconds: float = 30) -> None:
    """Until an expression about `focalstream`, the page's state, is true. (The page's policy forbids `eval`.)"""
    asked = f"(({{phase, chunks, loudest, hellos, played}}) => {expression})(focalstream)"
    until(page, lambda: page.evaluate(asked), expression, seconds)


def until(page: Any, holds: Callable[[], Any], what: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        said = page.evaluate("focalstream"), page.text_content("#status")
        assert time.monotonic() < end, f"{what}: {said}"
        page.wait_for_timeout(50)


def focused(page: Any) -> str:
    return page.evaluate("document.activeElement.id || document.activeElement.value || document.activeElement.tagName")


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
    for page in (first, second):
        wait(page, "phase === 'speaking' && chunks > 3 && loudest > 0.001")
    first.click("#cancel")
    wait(first, "phase === 'idle'")
    close_sessions(server)
    for page in (first, second):
        wait(page, "phase === 'idle' && hellos === 2")


def close_sessions(server: Any) -> None:
    """As a server that stops does, in its event loop."""
    from slm.serve.protocol import GOING_AWAY, Refused

    for session in list(server.service.sessions):
        refused = Refused("stopping", "the server stops", GOING_AWAY)
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


@pytest.mark.parametrize("source", ["microphone", "example"])
def test_what_comes_for_a_cancelled_stream_is_ignored(open_page: Any, source: str) -> None:
    wire = Wire()
    page = open_page(wire=wire)
    page.locator("[name=seconds]").fill("1")
    page.check(f"[value={source}]", force=True)

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
    assert page.text_content("#status").startswith(("Done.", "The model ended it.")) and page.evaluate(LIVE_TRACKS) == 0
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


def test_a_double_click_begins_once(open_page: Any) -> None:
    page, other = open_page(), open_page()
    page.evaluate("asks = true")
    page.dblclick("#go")
    until(page, lambda: page.evaluate("asked.length"), "a question for the microphone")
    page.evaluate("asked.forEach((answer) => answer(true))")
    wait(page, "phase === 'recording'")
    assert page.evaluate("tracks.length") == 1
    page.dispatch_event("#go", "click", {"detail": 2})  # a second click that comes when the first is done already
    assert page.evaluate("focalstream.phase") == "recording"
    page.click("#cancel")
    assert page.evaluate(LIVE_TRACKS) == 0
    other.get_by_text("An example").click()
    other.dblclick("#go")
    wait(other, "phase === 'speaking' && chunks > 0")


def test_cancel_while_the_microphone_is_asked_for(open_page: Any, server: Any) -> None:
    wire = Wire()
    page = open_page(wire=wire)
    page.evaluate("asks = true")

    def ask(nth: int) -> None:
        page.click("#go")
        wait(page, "phase === 'preparing'")
        until(page, lambda: page.evaluate("asked.length") == nth, "a question")

    ask(1)
    page.click("#cancel")
    wait(page, "phase === 'idle'")
    ask(2)
    page.evaluate("asked[0](true)")  # the first is answered after all: nobody wants it any more
    until(page, lambda: page.evaluate(f"tracks.length === 1 && {LIVE_TRACKS} === 0"), "its track stopped")
    assert page.evaluate("focalstream.phase") == "preparing"
    page.evaluate("asked[1](false)")
    wait(page, "phase === 'idle'")
    assert "cannot be used (not allowed)" in page.text_content("#status")
    ask(3)
    close_sessions(server)
    wait(page, "phase === 'idle' && hellos === 2")
    page.evaluate("asked[2](true)")
    until(page, lambda: page.evaluate(f"tracks.length === 2 && {LIVE_TRACKS} === 0"), "its track stopped")
    assert page.evaluate("focalstream.phase") == "idle" and "start" not in wire.told
    ask(4)
    page.evaluate("asked[3](true)")
    wait(page, "phase === 'recording'")
    assert page.evaluate(LIVE_TRACKS) == 1


def test_by_keyboard_alone(open_page: Any) -> None:
    wire = Wire()
    page = open_page(wire=wire)
    assert focused(page) == "microphone"  # from the token's form, which is gone
    page.locator("[name=seconds]").evaluate("(input) => (input.value = 1)")
    page.keyboard.press("Tab")
    assert focused(page) == "go"
    page.keyboard.down("Enter")
    wait(page, "phase === 'recording'")
    page.keyboard.down("Enter")  # a key that is held presses no second time
    page.keyboard.up("Enter")
    assert page.evaluate("focalstream.phase") == "recording" and focused(page) == "go"
    page.keyboard.press("Tab")
    assert focused(page) == "cancel"
    page.keyboard.press("Enter")
    wait(page, "phase === 'idle'")
    assert focused(page) == "cancel"
    page.keyboard.press("Enter")  # nothing is to be cancelled
    page.keyboard.press("Shift+Tab")
    wire.spoken = 0
    page.keyboard.press("Enter")
    wait(page, "phase === 'recording'")
    until(page, lambda: wire.spoken > 20000, "half a second of speech")
    page.keyboard.press("Enter")
    wait(page, "phase === 'idle' && chunks > 0")
    assert focused(page) == "go"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowRight")
    assert focused(page) == "example" and page.is_visible("select#example")


def test_a_seed_that_is_none_goes_nowhere(open_page: Any) -> None:
    wire = Wire()
    page = open_page(wire=wire)
    for wrong in ("-1", "1.5", "99999999999", ""):
        page.fill("#seed", wrong)
        page.click("#go")
        assert page.text_content("#status") == "Seed must be a whole number from 0 to 4294967295."
        assert focused(page) == "seed" and page.evaluate("focalstream.phase") == "idle"
    page.fill("#seed", "4294967295")
    page.click("#go")
    wait(page, "phase === 'recording'")
    assert wire.told == ["start"] and page.evaluate("tracks.length") == 1
    assert page.text_content("#status").startswith("Recording")


def test_everybody_can_read_and_press(open_page: Any) -> None:
    page = open_page("open sesamf")
    page.get_by_text("That token is not right.").wait_for()

    def check() -> None:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert [seen for seen in page.evaluate(CONTRASTS) if seen[0] < 4.5] == []  # the least that WCAG 2 AA allows

    check()
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    wait(page, "phase === 'idle'")
    page.set_viewport_size({"width": 390, "height": 844})
    check()
    page.click("#go")
    wait(page, "phase === 'recording'")
    check()
    named = "(all) => all.every((input) => input.labels[0]?.textContent.trim())"
    assert page.locator("input, select").evaluate_all(named)
    heights = "(all) => all.filter((e) => e.checkVisibility()).map((e) => e.getBoundingClientRect().height)"
    assert min(page.locator("button, .source span, [type=range], [type=number]").evaluate_all(heights)) >= 44
    assert page.locator("#cancel").bounding_box()["width"] > 300
    assert page.get_attribute("#status", "aria-live") == "polite"


def test_what_has_the_focus_shows_it(open_page: Any) -> None:
    page = open_page()
    shown = "((e) => getComputedStyle(e.matches('[type=radio]') ? e.nextElementSibling : e))(document.activeElement)"
    names: list[str] = []
    while not names or focused(page) != "BODY":  # after the last
        names.append(focused(page))
        assert page.evaluate(f"{shown}.outline").endswith(" solid 2px"), names
        page.keyboard.press("Tab")
    settings = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seconds", "seed"]
    assert names == ["microphone", "go", "cancel", *settings]
