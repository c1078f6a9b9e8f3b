"""Bar charts as inline SVG whose text keeps its size at any width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

ROW, TOP, THICK = 34, 15, 10  # pixels: height of a row, baseline of its words, thickness of its bar


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
