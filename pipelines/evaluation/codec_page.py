"""The HTML page of `eval-codec --html`: figures, bar charts, and every clip in all versions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipelines.evaluation.codec_table import facts, latency, source_rows, system_rows
from pipelines.evaluation.evaluate import Sounds
from pipelines.evaluation.measures import MEASURES
from pipelines.evaluation.systems import CODEC
from pipelines.pages.charts import Bar, bars
from pipelines.pages.html import Row, render_page
from pipelines.pages.player import PlayerClip, player_clip
from tokenizer.errors import counted
from tokenizer.metrics import METRICS_RATE

TEMPLATE = Path(__file__).resolve().with_suffix(".html")
CHARTED = {"estoi": 1.0, "stoi": 1.0, "pesq_wb": 4.64}  # measure -> its highest possible value
COLOURS = {"codec": "accent", "ceiling": "second"}  # of bars, by the kind of system
NOTHING_MISSING = {"nothing": "all measures were taken"}


def render(result: dict[str, Any], sounds: Sequence[Sounds]) -> str:
    """The page as HTML. `result` and `sounds` are what `evaluate` returns."""
    return render_page(
        TEMPLATE,
        title=f"Codec {result['codec']} on held-out speech",
        introduction=introduction(result),
        key_figures=headlines(result),
        quality_charts=charts(result, {"codec", "ceiling", "peer"}),
        systems=system_rows(result),
        codec=CODEC,
        flip_charts=charts(result, {"codec", "flips"}),
        sources=source_rows(result),
        clips=clips(sounds),
        facts=facts(result),
        measures=[(measure.title, measure.meaning) for measure in MEASURES.values()],
        missing=(result["not_measured"] or NOTHING_MISSING).items(),
        footer=f"Codec fingerprint {result['fingerprint']}",
    )


def introduction(result: dict[str, Any]) -> str:
    sources = result["systems"][CODEC]["sources"]
    total = counted(sum(row["clips"] for row in sources.values()), "clip")
    return f"{total} from {counted(len(sources), 'source')}: {', '.join(sources)}. {latency(result).capitalize()}."


def headlines(result: dict[str, Any]) -> list[Row]:
    """The key figures."""
    row, codes, speed = result["systems"][CODEC]["mean_over_sources"], result["codes"], result["speed"]
    return [
        Row("bit rate", f"{result['bitrate']:g} bit/s"),
        *(Row(MEASURES[measure].title, MEASURES[measure].text(row[measure])) for measure in CHARTED),
        Row("codebook used", f"{100 * codes['used']:.1f} %"),
        Row("normalised entropy", f"{codes['normalised_entropy']:.3f}"),
        Row(f"speed on {counted(speed['threads'], 'CPU thread')}", f"{speed['times_real_time']:.1f} × real time"),
    ]


def charts(result: dict[str, Any], kinds: set[str]) -> list[Markup]:
    """A chart of each of CHARTED that systems of these kinds have."""
    drawn = []
    for measure, most in CHARTED.items():
        items = [
            Bar(name, value, MEASURES[measure].text(value), COLOURS.get(system["kind"], ""))
            for name, system in result["systems"].items()
            if system["kind"] in kinds and (value := system["mean_over_sources"][measure]) is not None
        ]
        if items:
            drawn.append(bars(f"{MEASURES[measure].title} (maximum {most:g})", items, most))
    return drawn


def clips(sounds: Sequence[Sounds]) -> list[PlayerClip]:
    """Each clip with its versions, the original first."""
    return [
        player_clip(
            item.clip.id,
            item.clip.text,
            f"{item.clip.source}, {len(item.clip.wave) / METRICS_RATE:.1f} s",
            item.waves,
            METRICS_RATE,
        )
        for item in sounds
    ]
