"""The page without a server, in a real browser: speak, hear, offline, damage, keyboards, phones, slow devices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.slm.serve.browser import CONTRASTS, LIVE_TRACKS, focused, until, wait
from tests.slm.web.conftest import Host

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def open_page(open_tab: Callable[[str], Any], host: Callable[[Path], Host], tiny_folder: Path) -> Callable[[], Any]:
    """Opens the page with the tiny models loaded."""
    served = host(tiny_folder)

    def open_one() -> Any:
        page = open_tab(served.address)
        wait(page, "phase === 'idle'")
        page.locator("[name=seconds]").fill("1")
        return page

    return open_one


def continue_example(page: Any) -> None:
    page.get_by_text("An example").click()
    page.click("#go")
    wait(page, "phase === 'idle' && chunks > 0 && loudest > 0.001")


def test_speak_and_hear(open_page: Callable[[], Any]) -> None:
    page = open_page()
    assert "tiny" in page.text_content("#loaded") and "onnxruntime-web" in page.text_content("#fingerprint")
    assert "no sound leaves it" in page.text_content("footer")
    page.focus("#go")
    page.keyboard.press("Enter")  # records
    wait(page, "phase === 'recording'")
    assert page.evaluate(LIVE_TRACKS) == 1
    until(page, lambda: page.text_content("#span") > "0.5", "half a second of the prompt, drawn while it is spoken")
    page.keyboard.press("Enter")  # goes on
    wait(page, "phase === 'idle' && chunks > 0 && loudest > 0.001 && played > 8000")
    assert page.evaluate(LIVE_TRACKS) == 0
    assert page.text_content("#first").endswith(" ms") and page.text_content("#first-server").endswith(" ms")
    drawn = (
        "document.getElementById(%r).getContext('2d').getImageData(0, 0, 200, 70).data.some((v, i) => i %% 4 < 3 && v)"
    )
    assert all(page.evaluate(drawn % canvas) for canvas in ("wave", "tokens"))
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.path().stat().st_size > 44 + 2 * 16000


def test_the_same_seed_gives_the_same_speech(open_page: Callable[[], Any], tmp_path: Path) -> None:
    page = open_page()
    heard = []
    for seed in (1, 1, 2):
        page.fill("#seed", str(seed))
        continue_example(page)
        with page.expect_download() as download:
            page.click("#download")
        heard.append(download.value.path().read_bytes())
    assert heard[0] == heard[1] != heard[2]


def test_nothing_goes_out_and_a_visit_without_a_network_works(
    open_tab: Callable[[str], Any], host: Callable[[Path], Host], tiny_folder: Path
) -> None:
    served = host(tiny_folder)
    page = open_tab(served.address)
    asked: list[str] = []
    page.context.on("request", lambda request: asked.append(request.url))
    wait(page, "phase === 'idle'")
    assert not page.evaluate("crossOriginIsolated")  # the host sends no such headers
    page.evaluate("navigator.serviceWorker.ready.then(() => {})")
    assert asked and all(url.startswith((served.address, "data:", "blob:")) for url in asked)
    refused = "fetch('https://example.org').then(() => 'sent', (error) => error.message)"
    assert page.evaluate(refused) == "Failed to fetch"  # by the page's policy
    served.stop()
    page.context.set_offline(True)
    page.reload()
    wait(page, "phase === 'idle'")
    assert page.evaluate("crossOriginIsolated")  # the service worker sends them
    continue_example(page)


@pytest.mark.soak
def test_threads_change_nothing(
    open_tab: Callable[[str], Any], host: Callable[[Path], Host], tiny_folder: Path
) -> None:
    """Two threads of WebAssembly, once the service worker lets the page share memory."""
    served = host(tiny_folder)
    page = open_tab(served.address)
    wait(page, "phase === 'idle'")
    page.evaluate("navigator.serviceWorker.ready.then(() => {})")
    heard = []
    for threads in (1, 2):
        page.goto(f"{served.address}?threads={threads}")
        wait(page, "phase === 'idle'")
        assert ("one thread" if threads == 1 else "2 threads") in page.text_content("#fingerprint")
        page.locator("[name=seconds]").fill("1")
        continue_example(page)
        with page.expect_download() as download:
            page.click("#download")
        heard.append(download.value.path().read_bytes())
    assert len(heard[0]) == len(heard[1])


def test_a_file_that_is_no_sound(open_page: Callable[[], Any], tmp_path: Path) -> None:
    page = open_page()
    page.get_by_text("A file").click()
    page.click("#go")
    assert page.text_content("#status") == "Choose a sound file first."
    (tmp_path / "notes.txt").write_text("no sound at all")
    page.set_input_files("#file", tmp_path / "notes.txt")
    page.click("#go")
    until(page, lambda: "cannot be read as audio" in page.text_content("#status"), "an error")
    assert page.evaluate("focalstream.phase") == "idle"
    continue_example(page)


def test_a_prompt_without_a_whole_chunk(open_page: Callable[[], Any], tmp_path: Path) -> None:
    from tests.slm.conftest import chirps
    from tokenizer.audio import write_wav

    page = open_page()
    write_wav(tmp_path / "short.wav", chirps(0, 0.05), 16000)
    page.get_by_text("A file").click()
    page.set_input_files("#file", tmp_path / "short.wav")
    page.click("#go")
    until(page, lambda: page.text_content("#status") == "The prompt is too short.", "an error")


def test_no_microphone(open_page: Callable[[], Any]) -> None:
    page = open_page()
    page.evaluate("asks = true")
    page.click("#go")
    until(page, lambda: page.evaluate("asked.length"), "a question for the microphone")
    page.evaluate("asked[0](false)")
    until(page, lambda: "cannot be used (not allowed)" in page.text_content("#status"), "an error")
    continue_example(page)


def test_cancel_and_go_on(open_page: Callable[[], Any]) -> None:
    page = open_page()
    page.locator("[name=seconds]").fill("30")
    page.get_by_text("An example").click()
    page.click("#go")
    wait(page, "phase === 'speaking' && chunks > 2")
    page.click("#cancel")
    assert page.evaluate("focalstream.phase") == "idle" and page.text_content("#status") == "Cancelled."
    chunks = page.evaluate("focalstream.chunks")
    page.wait_for_timeout(500)
    assert page.evaluate("focalstream.chunks") == chunks  # what comes for the cancelled stream is ignored
    # While the prompt is processed; between two calls from here it may be over.
    page.evaluate("['#go', '#cancel'].forEach(name => document.querySelector(name).click())")
    assert page.evaluate("focalstream.phase") == "idle" and page.text_content("#status") == "Cancelled."
    page.locator("[name=seconds]").fill("1")
    continue_example(page)


def test_damage_is_named(open_tab: Callable[[str], Any], host: Callable[[Path], Host], damaged: Path) -> None:
    def says(expected: str) -> None:
        page = open_tab(host(damaged).address)
        until(page, lambda: expected in page.text_content("#status"), expected)
        assert page.text_content("#go") == "Not available"

    weights = damaged / "models" / "decode_step.weights.gzip"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1])
    says("decode_step.weights.gzip: is not the file that was exported; copy the whole folder again")
    weights.write_bytes(kept[:-1] + b"!")
    says("decode_step.weights.gzip: is not the file that was exported")
    weights.unlink()
    says("cannot be fetched (404)")
    manifest = damaged / "focalstream.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 99}))
    says("of version 99; this engine reads 1. Export the folder again")


def test_another_export_in_the_same_place(
    open_tab: Callable[[str], Any], host: Callable[[Path], Host], damaged: Path
) -> None:
    """Visitors get the new one, although the service worker keeps the old one."""
    served = host(damaged)
    page = open_tab(served.address)
    wait(page, "phase === 'idle'")
    page.evaluate("navigator.serviceWorker.ready.then(() => {})")
    manifest, worker = damaged / "focalstream.json", damaged / "service_worker.js"
    old = json.loads(manifest.read_text())
    content = "0123456789abcdef"
    manifest.write_text(json.dumps({**old, "content": content, "lm": {**old["lm"], "name": "another"}}))
    worker.write_text(worker.read_text().replace(old["content"], content))
    page.reload()  # the browser finds the new service worker now
    names = "caches.keys().then((names) => names.join())"
    until(page, lambda: page.evaluate(names) == f"focalstream,focalstream-{content}", "the old cache gone")
    page.reload()
    wait(page, "phase === 'idle'")
    assert "another" in page.text_content("#loaded")


@pytest.mark.soak
def test_a_slow_device(open_page: Callable[[], Any]) -> None:
    """With a fourth of the processor's time for the page, sound still comes."""
    page = open_page()
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": 4})
    continue_example(page)


def test_everybody_can_read_and_press(open_page: Callable[[], Any]) -> None:
    page = open_page()
    for size in ((1280, 800), (390, 844)):
        page.set_viewport_size({"width": size[0], "height": size[1]})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert [seen for seen in page.evaluate(CONTRASTS) if seen[0] < 4.5] == []  # WCAG 2 AA
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    page.focus("[name=source][value=example]")
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert focused(page) == "go"
    page.keyboard.press("Enter")
    wait(page, "phase === 'idle' && chunks > 0 && loudest > 0.001")
