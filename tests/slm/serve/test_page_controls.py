"""The controls of the page in a real browser: impatient fingers, keyboards, contrast, sizes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.slm.serve.browser import CONTRASTS, LIVE_TRACKS, Wire, close_sessions, focused, until, wait
from tests.slm.serve.conftest import TOKEN

pytestmark = [pytest.mark.browser, pytest.mark.slow]


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
    assert focused(page) == "hands-free" and page.is_visible("#for-hands-free")
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
    page.get_by_text("Wrong token.").wait_for()

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
    settings = ["temperature", "top_p", "top_k", "min_p", "silence_limit", "repetition_penalty", "seconds", "seed"]
    opus = ["opus"] if page.is_visible("#opus") else []  # needs PyAV
    assert names == ["microphone", "go", "cancel", *opus, *settings]
