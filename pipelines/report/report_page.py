"""The HTML page of `report --html`: a dataset's figures, charts, and samples to listen to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.bulk.progress import Speed
from pipelines.pages.html import render_page
from pipelines.pages.player import PlayerClip, player_clip
from pipelines.report import report_charts, summary
from pipelines.report.figures import Figures
from pipelines.report.samples import Sample

TEMPLATE = Path(__file__).resolve().with_suffix(".html")


def render(name: str, figures: Figures, samples: Sequence[Sample], why_silent: str, speed: Speed | None) -> str:
    """The page as HTML.

    Args:
        name: of the dataset.
        why_silent: shown where there are no samples.
        speed: of the runs that made the dataset; None where it is not known.
    """
    description = figures.description
    return render_page(
        TEMPLATE,
        title=f"Dataset {name}",
        introduction=summary.introduction(figures),
        key_figures=summary.headlines(figures),
        samples_text=summary.samples_text(samples, why_silent),
        samples=[clip(sample) for sample in samples],
        parts=[  # anchor, title, text, charts
            ("cuts", "Cuts and speakers", summary.cuts_text(figures), report_charts.cut_charts(figures)),
            ("codes", "Tokens", summary.codes_text(figures), report_charts.code_charts(figures)),
            ("size", "Size", summary.size_text(figures), report_charts.size_charts(figures)),
            ("quarantine", "Quarantine", summary.quarantine_text(figures), report_charts.quarantine_charts(figures)),
            ("speed", "Speed", summary.speed_text(speed), report_charts.speed_charts(speed)),
        ],
        examples=[
            (reason, f"{failed.id} ({failed.source or 'no source'}): {failed.detail}")
            for reason, (_, failed) in figures.reasons.items()
        ],
        identity=summary.identity(description).items(),
        footer=f"Codec fingerprint {description.codec.fingerprint}",
    )


def clip(sample: Sample) -> PlayerClip:
    speaker = f"speaker {sample.speaker}, " if sample.speaker else ""
    about = f"{speaker}{sample.seconds:.1f}\u00a0s"
    return player_clip(sample.id, sample.text, about, {"decoded": sample.wave}, sample.sample_rate)
