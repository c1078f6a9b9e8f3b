"""What the tests of the page share: a slow network, the state of the page, microphones and contrasts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE = 120  # seconds with a page on a busy machine; what is waited for is looked for 20 times a second
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


def chromium(microphone: str) -> Iterator[Any]:
    """Chromium whose microphone is a sound file, over and over."""
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=str(CHROMIUM),
            args=[
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                f"--use-file-for-fake-audio-capture={microphone}",
                "--autoplay-policy=no-user-gesture-required",
            ],
        )
        yield browser
        browser.close()


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


def wait(page: Any, expression: str, seconds: float = PATIENCE) -> None:
    """Until an expression about `focalstream`, the page's state, is true. (The page's policy forbids `eval`.)"""
    asked = f"(({{phase, chunks, loudest, hellos, played, turns}}) => {expression})(focalstream)"
    until(page, lambda: page.evaluate(asked), expression, seconds)


def until(page: Any, holds: Callable[[], Any], what: str, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not holds():
        said = page.evaluate("focalstream"), page.text_content("#status")
        assert time.monotonic() < end, f"{what}: {said}"
        page.wait_for_timeout(50)


def focused(page: Any) -> str:
    return page.evaluate("document.activeElement.id || document.activeElement.value || document.activeElement.tagName")


def close_sessions(server: Any) -> None:
    """As a server that stops does, in its event loop."""
    from slm.serve.protocol import GOING_AWAY, Refused

    for session in list(server.service.sessions):
        refused = Refused("stopping", "the server stops", GOING_AWAY)
        session._over.get_loop().call_soon_threadsafe(session.close, refused)
