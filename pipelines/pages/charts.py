"""Bars, columns and curves as inline SVG, drawn by `charts.html`.

Labels and ticks are text beside the SVG, so that they keep their size at any width and follow the colour scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from pipelines.pages.html import render_macro

WIDTH, HEIGHT = 600.0, 240.0  # of a plot in SVG units; the page stretches it


@dataclass(frozen=True)
class Bar:
    """`text` is the value as shown; `colour` is "accent", "second" or, for grey, empty."""

    label: str
    value: float
    text: str
    colour: str = ""


@dataclass(frozen=True)
class Axis:
    """A linear axis with round ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def part(self, value: float) -> float:
        """Where a value lies, from 0 at `low` to 1 at `high`."""
        return (value - self.low) / (self.high - self.low)


def span_axis(end: float, parts: int) -> Axis:
    """From 0 to exactly `end` (a duration, a number of steps), with at most `parts` + 1 round ticks."""
    step = round_step(end / parts)
    return Axis(0.0, end, tuple(float(tick) for tick in np.arange(0.0, end * (1 + 1e-9), step)))


def value_axis(low: float, high: float) -> Axis:
    """The smallest axis between round ticks that holds both values: about five ticks in all."""
    step = round_step(max(high - low, 1e-6) / 4)
    first, last = np.floor(low / step), np.ceil(high / step)
    last = max(last, first + 1)
    return Axis(first * step, last * step, tuple(float(tick) for tick in np.arange(first, last + 1) * step))


def round_step(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(step))
    return float(power * next(factor for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9)))


def curve_path(points: Sequence[tuple[float, float]], x: Axis, y: Axis, width: float, height: float) -> str:
    """The `d` of an SVG path through (x, y) points, in a box of width by height, up being up."""
    places = [(x.part(px) * width, (1 - y.part(py)) * height) for px, py in points]
    return "M" + "L".join(f"{px:.2f},{py:.2f}" for px, py in places)


def bars(title: str, items: Sequence[Bar], most: float) -> Markup:
    """Horizontal bars from 0 to `most`, each below its label and value."""
    return render_macro("charts.html", "bars", title=title, items=items, most=most)


def columns(title: str, heights: Sequence[float], step: float, x_unit: str, y_unit: str, note: str = "") -> Markup:
    """A histogram: column i stands over [i * step, (i + 1) * step)."""
    x, y = span_axis(step * len(heights), 4), value_axis(0, max(heights))
    parts = [(i / len(heights), y.part(height)) for i, height in enumerate(heights) if height]
    shape = render_macro("charts.html", "column_shapes", parts=parts, column=1 / len(heights), box=(WIDTH, HEIGHT))
    return _plot(title, x, y, x_unit, y_unit, shape, note)


def curve(title: str, points: Sequence[tuple[float, float]], x_unit: str, y_unit: str, most: float = 0.0) -> Markup:
    """A line through (x, y) points from x = 0 on. The y axis holds 0 and `most`."""
    x, y = span_axis(max(px for px, _ in points), 4), value_axis(0, max(most, *(py for _, py in points)))
    shape = Markup('<path d="{}"/>').format(curve_path(points, x, y, WIDTH, HEIGHT))
    return _plot(title, x, y, x_unit, y_unit, shape)


def _plot(title: str, x: Axis, y: Axis, x_unit: str, y_unit: str, shape: Markup, note: str = "") -> Markup:
    names = {"title": title, "x": x, "y": y, "x_unit": x_unit, "y_unit": y_unit, "note": note}
    return render_macro("charts.html", "plot", **names, shape=shape, box=(WIDTH, HEIGHT))
