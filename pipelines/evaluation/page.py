"""An evaluation as one HTML file that needs nothing but itself: figures, bars, and the clips in every version."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from pipelines.evaluation.evaluate import Sounds
from pipelines.evaluation.measures import MEASURES
from pipelines.evaluation.systems import CODEC
from pipelines.evaluation.table import bitrate, facts, latency, measured
from pipelines.pages.charts import Bar, bars_html
from pipelines.pages.html import Row, base_css, cells_html, data_uri, headlines_html, mp3_bytes
from tokenizer.metrics import METRICS_RATE

ASSETS = Path(__file__).resolve().parent
CHARTED = {"estoi": 1.0, "stoi": 1.0, "pesq_wb": 4.64}  # measure -> the most it can be


def render(result: dict[str, Any], sounds: Sequence[Sounds]) -> str:
    """The page as HTML. `result` and `sounds` are what `evaluate` returns."""
    systems = result["systems"]
    by_source = {**systems[CODEC]["sources"], "mean of sources": systems[CODEC]["mean_over_sources"]}
    shown = {name: system for name, system in systems.items() if system["kind"] in ("codec", "ceiling", "peer")}
    flips = {name: system for name, system in systems.items() if system["kind"] in ("codec", "flips")}
    return Template((ASSETS / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"Codec {result['codec']} on held-out speech"),
        css=base_css() + (ASSETS / "page.css").read_text(encoding="utf-8").strip(),
        js=(ASSETS / "page.js").read_text(encoding="utf-8").strip(),
        introduction=escape(introduction(result)),
        headlines=headlines_html(headlines(result)),
        clips="".join(map(clip_html, sounds)),
        quality_charts=charts_html(shown),
        flip_charts=charts_html(flips),
        systems=table_html(
            ["", "bit/s"],
            [
                ([name, bitrate(system["bitrate"])], system["mean_over_sources"], system["kind"])
                for name, system in systems.items()
            ],
        ),
        sources=table_html(
            ["", "clips"],
            [([name, str(row.get("clips", ""))], row, "") for name, row in by_source.items()],
        ),
        facts="".join(f"<li>{escape(fact)}</li>" for fact in facts(result)),
        measures=terms_html({measure.title: measure.meaning for measure in MEASURES.values()}),
        missing=terms_html(result["not_measured"] or {"nothing": "all was measured"}),
        footer=escape(f"Codec fingerprint {result['fingerprint']}"),
    )


def introduction(result: dict[str, Any]) -> str:
    sources = result["systems"][CODEC]["sources"]
    clips = sum(row["clips"] for row in sources.values())
    return f"{clips} clips of {len(sources)} source(s): {', '.join(sources)}. {latency(result).capitalize()}."


def headlines(result: dict[str, Any]) -> list[Row]:
    """The few figures on top."""
    row, codes = result["systems"][CODEC]["mean_over_sources"], result["codes"]
    quality = [Row(MEASURES[measure].title, MEASURES[measure].text(row[measure])) for measure in CHARTED]
    return [
        Row("bit rate", f"{result['bitrate']:g} bit/s"),
        *quality,
        Row("codes used", f"{100 * codes['used']:.1f} %"),
        Row("normalised entropy", f"{codes['normalised_entropy']:.3f}"),
        Row(f"speed, {result['speed']['threads']} thread(s)", f"{result['speed']['times_real_time']:.1f} × real time"),
    ]


def charts_html(systems: dict[str, dict[str, Any]]) -> str:
    """A chart of each measure that the systems have."""
    charts = []
    for measure, most in CHARTED.items():
        values = {name: system["mean_over_sources"][measure] for name, system in systems.items()}
        bars = [
            Bar(name, value, MEASURES[measure].text(value), systems[name]["kind"])
            for name, value in values.items()
            if value is not None
        ]
        if bars:
            charts.append(bars_html(f"{MEASURES[measure].title}, of {most:g}", bars, most))
    return f'<div class="charts">{"".join(charts)}</div>'


def table_html(heads: list[str], rows: list[tuple[list[str], dict[str, Any], str]]) -> str:
    """Leading cells, then the measures that some row has; (cells, figures, CSS class) of each row."""
    columns = measured([row for _, row, _ in rows])
    return cells_html(
        [*heads, *(MEASURES[m].title for m in columns)],
        [([*lead, *(MEASURES[m].text(row.get(m)) for m in columns)], css_class) for lead, row, css_class in rows],
    )


def clip_html(sounds: Sounds) -> str:
    """One player, and a button for each version, of which the first is in the player."""
    clip = sounds.clip
    files = {name: data_uri("audio/mpeg", mp3_bytes(wave, METRICS_RATE)) for name, wave in sounds.waves.items()}
    buttons = "".join(
        f'<button type="button" aria-pressed="{str(not number).lower()}" data-src="{uri}">{escape(name)}</button>'
        for number, (name, uri) in enumerate(files.items())
    )
    title, first = f"“{clip.text}”" if clip.text else clip.id, next(iter(files.values()))
    return (
        f'<article><h3>{escape(title)}</h3><p class="soft">{escape(clip.source)}, {escape(clip.id)}, '
        f'{len(clip.wave) / METRICS_RATE:.1f} s</p><div class="versions">{buttons}</div>'
        f'<audio controls preload="none" aria-label="{escape(title)}" src="{first}"></audio></article>'
    )


def terms_html(terms: dict[str, str]) -> str:
    return "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in terms.items())
