"""Bars, columns and curves as inline SVG whose text keeps its size at any width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from pipelines.pages.axes import Axis, curve_path, span_axis, value_axis, x_axis_html, y_axis_html

ROW, TOP, THICK = 34, 15, 10  # pixels: height of a row, baseline of its words, thickness of its bar
WIDTH, HEIGHT = 600.0, 240.0  # of a plot in its own units; the page stretches it


@dataclass(frozen=True)
class Bar:
    """`css_class` colours it; `text` is its value in words."""

    label: str
    value: float
    text: str
    css_class: str


def bars_html(title: str, bars: Sequence[Bar], most: float) -> str:
    """Horizontal bars from 0 to `most`, each below its label and value."""
    rows = []
    for number, bar in enumerate(bars):
        y = number * ROW
        width = 100 * min(max(bar.value / most, 0), 1)
        rows.append(
            f'<text x="0" y="{y + TOP}">{escape(bar.label)}</text>'
            f'<text x="100%" y="{y + TOP}" text-anchor="end">{escape(bar.text)}</text>'
            f'<rect class="track" x="0" y="{y + TOP + 5}" width="100%" height="{THICK}" rx="2"/>'
            f'<rect class="bar {bar.css_class}" x="0" y="{y + TOP + 5}" width="{width:.2f}%" height="{THICK}" rx="2"/>'
        )
    said = ", ".join(f"{bar.label} {bar.text}" for bar in bars)
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg height="{ROW * len(bars)}" role="img" aria-label="{escape(title)}: {escape(said)}">{"".join(rows)}</svg>'
        "</figure>"
    )


def columns_html(title: str, heights: Sequence[float], step: float, x_unit: str, y_unit: str, note: str = "") -> str:
    """A histogram: column i stands over [i * step, (i + 1) * step)."""
    x, y = span_axis(step * len(heights), 4), value_axis(0, max(heights))
    columns = "".join(
        f'<rect class="column" x="{(i + 0.04) * WIDTH / len(heights):.2f}" y="{HEIGHT * (1 - y.part(height)):.2f}" '
        f'width="{0.92 * WIDTH / len(heights):.2f}" height="{HEIGHT * y.part(height):.2f}"/>'
        for i, height in enumerate(heights)
        if height
    )
    return _plot_html(title, x, y, x_unit, y_unit, columns, note)


def curve_html(
    title: str, points: Sequence[tuple[float, float]], x_unit: str, y_unit: str, most: float = 0.0, note: str = ""
) -> str:
    """A line through (x, y) points from x = 0 on. The y axis holds 0 and `most`."""
    x, y = span_axis(max(px for px, _ in points), 4), value_axis(0, max(most, *(py for _, py in points)))
    return _plot_html(title, x, y, x_unit, y_unit, f'<path d="{curve_path(points, x, y, WIDTH, HEIGHT)}"/>', note)


def _plot_html(title: str, x: Axis, y: Axis, x_unit: str, y_unit: str, content: str, note: str) -> str:
    lines = "".join(
        f'<line x1="0" x2="{WIDTH:g}" y1="{(1 - y.part(tick)) * HEIGHT:.2f}" y2="{(1 - y.part(tick)) * HEIGHT:.2f}"/>'
        for tick in y.ticks
    )
    below = f'<p class="soft small">{escape(note)}</p>' if note else ""
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<div class="plot drawn">{y_axis_html(y, y_unit)}<div class="area">'
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}. {escape(note)}">{lines}{content}</svg></div>'
        f"{x_axis_html(x, x_unit)}</div>{below}</figure>"
    )
