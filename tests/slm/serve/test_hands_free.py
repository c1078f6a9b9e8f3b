"""A conversation without buttons, with a recorded one as the microphone: three turns, one of them interrupts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.slm.serve.browser import LIVE_TRACKS, Wire, chromium, until, wait
from tokenizer.audio import read_audio, write_wav

SPEECH = Path(__file__).resolve().parents[3] / "slm" / "demo" / "speech" / "audio"
RATE = 48000
SPOKEN = {1.0: "ada-01", 4.2: "ben-01", 13.0: "ada-01"}  # the second comes while the first is being answered
SECONDS = 1.4  # of each
END = 90.0  # Chromium then begins again
pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium whose microphone is a recorded conversation."""
    wave = np.random.default_rng(0).normal(0, 3e-4, int(END * RATE)).astype(np.float32)  # a quiet room
    for begin, name in SPOKEN.items():
        spoken = read_audio(SPEECH / f"{name}.ogg", RATE, SECONDS)
        wave[int(begin * RATE) :][: len(spoken)] += 0.5 * spoken / np.abs(spoken).max()
    path = tmp_path_factory.mktemp("conversation") / "conversation.wav"
    write_wav(path, wave, RATE)
    yield from chromium(str(path))


def test_three_turns_and_one_interruption(open_page: Any) -> None:
    wire = Wire()
    page = open_page(wire=wire)
    page.locator("[name=seconds]").fill("4")
    page.get_by_text("Hands-free").click()
    page.click("#go")
    wait(page, "phase === 'listening'")
    assert page.text_content("#go") == "Stop" and "Speak, then pause" in page.text_content("#status")
    wait(page, "turns === 3 && phase === 'listening'")
    assert wire.told == ["start", "continue", "cancel", "start", "continue", "start", "continue"]
    assert page.evaluate("focalstream.interrupted") == 1
    lines = page.locator("#turns span").all_text_contents()  # the latest first
    assert [line.split(":")[0] for line in lines] == ["3", "2", "1"]
    assert ["interrupted" in line for line in lines] == [False, False, True]
    for line in lines:  # what was said, with little silence before and after it
        assert 1.0 <= float(line.split("prompt ")[1].split(" s")[0]) <= 2.2
    page.get_by_label("Replay turn 2").click()
    until(page, lambda: page.evaluate("focalstream.loudest") > 0.001, "turn 2 again")
    assert page.evaluate(LIVE_TRACKS) == 1
    page.click("#go")
    wait(page, "phase === 'idle'")
    assert page.text_content("#status") == "Stopped." and page.evaluate(LIVE_TRACKS) == 0
    assert page.text_content("#go") == "Start"


def test_a_silent_microphone_is_said(open_page: Any) -> None:
    page = open_page()
    page.evaluate("""() => {
      const context = new AudioContext();
      const source = new ConstantSourceNode(context, { offset: 0 });
      const muted = context.createMediaStreamDestination();
      source.connect(muted);
      source.start();
      navigator.mediaDevices.getUserMedia = async () => muted.stream;
    }""")
    page.click("#go")
    page.get_by_text("The microphone is silent.").wait_for()
    page.click("#cancel")


def test_the_token_is_remembered_for_the_tab(open_page: Any) -> None:
    page = open_page()
    page.reload()
    wait(page, "phase === 'idle'")
    assert page.is_hidden("#unlock") and page.get_attribute("#seconds", "max") == "120"


def test_what_is_wrong_and_what_to_do(open_page: Any, server: Any, browser: Any, monkeypatch: Any) -> None:
    context = browser.new_context()
    page = context.new_page()
    monkeypatch.setattr(server.service, "trusts", lambda origin, host: False)
    page.goto(server.http)
    page.get_by_text(f"Start it with --origin {server.http}").wait_for()
    monkeypatch.undo()
    page.add_init_script("Object.defineProperty(window, 'isSecureContext', { value: false })")
    page.goto(server.http)
    page.fill("#token", "open sesame")
    page.press("#token", "Enter")
    page.get_by_text("--certfile and --keyfile").wait_for()
    assert page.get_attribute("#go", "aria-disabled") == "true"
    context.close()


def test_nothing_moves_while_it_connects(open_page: Any, server: Any, browser: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(server.service, "auth_token", None)
    for width in (1280, 390):
        context = browser.new_context(viewport={"width": width, "height": 844})
        page = context.new_page()
        wire = Wire()
        wire.stops_at = "hello"
        page.route_web_socket("**/v1/stream", wire)
        page.goto(server.http)
        until(page, lambda wire=wire: wire.heard, "the server's hello")
        place = "document.getElementById('go').getBoundingClientRect().top"
        before = page.evaluate(place)
        wire.release()
        wait(page, "phase === 'idle'")
        page.wait_for_timeout(100)
        assert page.evaluate(place) == before, width
        context.close()
