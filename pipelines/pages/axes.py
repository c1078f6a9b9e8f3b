"""Axes of the plots on our pages: round ticks, drawn as text beside the picture, so that they stay legible on a narrow
screen and in the dark; `.plot` in `base.css` lays them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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


def x_axis_html(axis: Axis, unit: str) -> str:
    """Ticks from left to right; the last one carries the unit, and ends at its tick where it would leave the plot."""
    spans = []
    for tick in axis.ticks:
        last = tick == axis.ticks[-1]
        css_class = ' class="end"' if last and axis.part(tick) > 0.9 else ""
        text = f"{tick:g} {unit}" if last else f"{tick:g}"
        spans.append(f'<span{css_class} style="left:{axis.part(tick):.2%}">{text}</span>')
    return f'<div class="x" aria-hidden="true">{"".join(spans)}</div>'


def y_axis_html(axis: Axis, unit: str) -> str:
    """Ticks from bottom to top; the last one carries the unit."""
    spans = []
    for tick in axis.ticks:
        text = f"{tick:g} {unit}" if tick == axis.ticks[-1] else f"{tick:g}"
        spans.append(f'<span style="top:{1 - axis.part(tick):.2%}">{text}</span>')
    return f'<div class="y" aria-hidden="true">{"".join(spans)}</div>'
