"""The demo page is one file, says what it was given, and cannot be broken by what it was given."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from slm.demo import demo_page as page

VOID = {"meta", "img", "line", "path", "br", "link", "input"}
RATE = 16_000


class Reader(HTMLParser):
    """Collects elements and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def make_page(rng: np.random.Generator, text: str = "A sentence.") -> page.Page:
    def sound(seconds: float) -> page.Waveform:
        return page.Waveform(rng.uniform(-0.9, 0.9, round(seconds * RATE)).astype(np.float32), RATE)

    row = page.Row(text, text, text)
    return page.Page(
        title=text,
        introduction=[text, text],
        caveat=text,
        headlines=[row, page.Row("speed", "31.2 × real time")],
        continuation_text=text,
        continuations=[
            page.ShownContinuation(text, text, sound(1.0), 0.25, rng.integers(0, 4096, 50).tolist(), 50.0, 12)
        ],
        resynthesis_text=text,
        clips=[
            page.ShownClip(text, text, text, sound(0.4), sound(0.42)),
            page.ShownClip("bare", "", "", sound(0.3), sound(0.3)),
        ],
        dataset_text=text,
        dataset=page.Table(text, [row]),
        training_text=text,
        loss=page.LossCurve(
            [(1.0, 12.0), (2.0, 11.0), (3.0, 10.5)], [(0.0, 12.1), (3.0, 11.0)], [("uniform", 12.0), ("unigram", 11.4)]
        ),
        figures_text=text,
        tables=[page.Table(text, [row, row])],
        footer=text,
    )


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_page_needs_nothing_from_outside(rng):
    html = page.render(make_page(rng))
    reader = Reader(html)
    sources = [element["src"] for name in ("img", "audio") for element in reader.all(name)]
    assert len(sources) == 12  # a spectrogram and a player for five sounds, a token track, the colour scale
    assert all(source.startswith("data:") for source in sources)
    assert not re.search(r"https?://|@import|url\(", html)
    assert [link["href"][0] for link in reader.all("a")] == ["#"] * 5
    targets = {attributes.get("id") for _, attributes in reader.elements}
    assert all(link["href"][1:] in targets for link in reader.all("a"))


def test_everything_has_a_name_for_a_screen_reader(rng):
    reader = Reader(page.render(make_page(rng)))
    assert all(image["alt"] for image in reader.all("img"))
    assert all(player["aria-label"] for player in reader.all("audio"))
    (track,) = [attributes for _, attributes in reader.elements if attributes.get("role") == "slider"]
    assert track["tabindex"] == "0" and track["aria-label"]


def test_players_hold_the_sounds(rng):
    content = make_page(rng)
    players = Reader(page.render(content)).all("audio")
    clip = content.clips[0]
    for player, sound in zip(players, (content.continuations[0].sound, clip.original, clip.resynthesis), strict=False):
        data = base64.b64decode(player["src"].partition("base64,")[2])
        wave, rate = soundfile.read(io.BytesIO(data), dtype="float32")
        assert rate == RATE
        np.testing.assert_allclose(wave, sound.wave, atol=1 / 2**15)  # one step of 16 bits


def test_continuation_shows_its_tokens_and_where_the_prompt_ends(rng):
    content = make_page(rng)
    reader = Reader(page.render(content))
    (track,) = [attributes for _, attributes in reader.elements if attributes.get("role") == "slider"]
    assert [int(token) for token in track["data-tokens"].split(",")] == content.continuations[0].tokens
    marks = [attributes["style"] for _, attributes in reader.elements if attributes.get("class") == "mark"]
    assert marks == ["left:25.00%"] * 2


def test_hostile_text_stays_text(rng):
    html = page.render(make_page(rng, text='"><script>alert(1)</script><img src=x onerror=alert(1)> $css &amp;'))
    reader = Reader(html)
    assert len(reader.all("script")) == 1
    assert all("onerror" not in attributes for _, attributes in reader.elements)
    assert "<script>alert" not in html
    assert "$css &amp;amp;" in html


@pytest.mark.browser
@pytest.mark.slow
def test_token_track_answers_to_the_keyboard_in_a_browser(rng, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    content = make_page(rng)
    press = (
        "<script>const t = document.querySelector('.track'); t.focus();"
        "for (const key of ['End', 'ArrowLeft', 'ArrowLeft'])"
        " t.dispatchEvent(new KeyboardEvent('keydown', {key, cancelable: true}));"
        "document.title = document.querySelector('.readout').textContent;</script></body>"
    )
    path = tmp_path / "page.html"
    path.write_text(page.render(content).replace("</body>", press), encoding="utf-8")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    shown = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    token = content.continuations[0].tokens[47]
    assert f"<title>token 48 of 50, 0.94 s: id {token}, bits {token:012b}</title>" in shown
