"""What all HTML pages share: text stays text, nothing is loaded from outside, and no value is forgotten."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import numpy as np
import pytest
import soundfile

from pipelines.pages.charts import HEIGHT, WIDTH, Bar, bars, columns, curve
from pipelines.pages.html import Row, render_macro, render_page
from pipelines.pages.player import mp3_bytes, player_clip, wav_bytes

HOSTILE = '"><script>alert(1)</script>{{ 7 * 7 }}'
PAGE = """{% extends "base.html" %}
{% from "pieces.html" import headlines, table, terms %}
{% from "player.html" import player %}
{% set command, sections = "test", [("here", "Here")] %}
{% block main %}<section id="here">{{ headlines(rows) }}{{ table(*cells, marked="b") }}{{ terms(pairs) }}
{% for clip in clips %}{{ player(clip) }}{% endfor %}{{ chart }}</section>{% endblock %}
"""


class Elements(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture
def template(tmp_path) -> Path:
    (tmp_path / "page.html").write_text(PAGE)
    return tmp_path / "page.html"


def values(rng: np.random.Generator) -> dict[str, object]:
    wave = rng.uniform(-1, 1, 4000).astype(np.float32)
    return {
        "title": HOSTILE,
        "footer": HOSTILE,
        "rows": [Row(HOSTILE, "3.5 MB per hour")],
        "cells": (["", HOSTILE], [["a", HOSTILE], ["b", "2"]]),
        "pairs": [(HOSTILE, HOSTILE)],
        "clips": [player_clip("id", HOSTILE, "1 s", {"original": wave, HOSTILE: -wave}, 16_000)],
        "chart": bars(HOSTILE, [Bar(HOSTILE, 1.0, HOSTILE)], 2.0),
    }


def test_text_stays_text_and_nothing_comes_from_outside(template):
    html = render_page(template, **values(np.random.default_rng(0)))
    page = Elements(html)
    assert not page.all("script") and "script-src 'none'" in page.all("meta")[3]["content"]
    # title twice, footer, headline, two cells, two terms, a clip's title and button, a chart's title, label and value
    assert "".join(page.text).count("alert(1)</script>{{ 7 * 7 }}") == 13
    assert not re.search(r'(src|href)="(?!data:|#)|https?://|@import|url\(', html)
    assert [row.get("class") for row in page.all("tr")] == [None, None, "marked"]


def test_a_value_that_is_not_given_is_an_error(template):
    given = values(np.random.default_rng(1))
    for name in given:
        with pytest.raises(jinja2.UndefinedError):
            render_page(template, **{key: value for key, value in given.items() if key != name})


def test_headlines_set_units_apart():
    page = Elements(render_macro("pieces.html", "headlines", rows=[Row("size", "3.5 MB per hour"), Row("cuts", "80")]))
    assert [text.strip() for text in page.text if text.strip()] == ["size", "3.5", "MB per hour", "cuts", "80"]
    assert len(page.all("small")) == 1


def test_player_has_a_button_for_each_version_but_none_for_one():
    rng = np.random.default_rng(2)
    waves = {name: rng.uniform(-1, 1, 3000).astype(np.float32) for name in ("original", "codec", "other")}
    page = Elements(render_macro("player.html", "player", clip=player_clip("a", "", "1 s", waves, 16_000)))
    addresses = [button["data-src"] for button in page.all("button")]
    assert len(set(addresses)) == 3 and page.all("audio")[0]["src"] == addresses[0]
    assert [button["aria-pressed"] for button in page.all("button")] == ["true", "false", "false"]
    one = player_clip("a", "", "1 s", {"decoded": waves["codec"]}, 16_000)
    assert not Elements(render_macro("player.html", "player", clip=one)).all("button")


def test_sounds_are_what_was_given():
    seconds = np.arange(16_000) / 16_000
    wave = (0.5 * np.sin(2 * np.pi * 440 * seconds)).astype(np.float32)
    read, rate = soundfile.read(io.BytesIO(wav_bytes(wave, 16_000)), dtype="float32")
    np.testing.assert_allclose(read, wave, atol=1 / 2**15)  # a step of 16 bits
    assert rate == 16_000
    read, rate = soundfile.read(io.BytesIO(mp3_bytes(wave, 16_000)), dtype="float32")
    assert rate == 16_000 and np.abs(np.fft.rfft(read[:16_000])).argmax() == pytest.approx(440, abs=1)


def test_bars_are_as_long_as_their_values():
    rng = np.random.default_rng(3)
    shares = rng.uniform(0, 1, 5)
    items = [Bar(f"bar {i}", 8 * share, f"{share:.3f}", "accent") for i, share in enumerate(shares)]
    chart = Elements(bars("title", [*items, Bar("too long", 9.0, "9"), Bar("below", -1.0, "-1")], 8.0))
    drawn = [rect["width"] for rect in chart.all("rect") if "bar" in rect["class"]]
    assert drawn == [*(f"{100 * share:.2f}%" for share in shares), "100.00%", "0.00%"]
    label = chart.all("svg")[0]["aria-label"]
    assert all(f"{item.label} {item.text}" in label for item in items)


def test_columns_and_curves_fill_their_box():
    rng = np.random.default_rng(4)
    heights = rng.integers(1, 100, 7).tolist()
    chart = Elements(columns("title", [*heights, 0], 0.5, "s", "", "a note"))
    drawn = [float(rect["height"]) for rect in chart.all("rect")]
    np.testing.assert_allclose(np.array(drawn) / drawn[0], np.array(heights) / heights[0], atol=0.01)  # two decimals
    assert "a note" in chart.text and "4 s" in chart.text
    points = [(float(x), float(y)) for x, y in enumerate(rng.uniform(0, 9, 6))]
    path = Elements(curve("title", points, "h", "h")).all("path")[0]["d"]
    places = np.array([place.split(",") for place in path[1:].split("L")], float)
    assert len(places) == 6 and (places >= 0).all() and (places <= [WIDTH, HEIGHT]).all()
    assert (np.argsort(places[:, 1]) == np.argsort([-y for _, y in points])).all()
