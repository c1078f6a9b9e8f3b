"""Axes hold what is drawn on them, with few and round ticks."""

import numpy as np

from pipelines.pages.charts import Axis, curve_path, span_axis, value_axis


def test_axes_hold_their_values_and_tick_at_round_ones():
    rng = np.random.default_rng(1)
    for _ in range(200):
        low, high = np.sort(rng.normal(0, 10 ** rng.uniform(-3, 3), 2))
        axis = value_axis(low, high)
        assert axis.low <= low and high <= axis.high
        assert 3 <= len(axis.ticks) <= 8
        span = span_axis(abs(high) + 0.01, 6)
        assert span.part(span.high) == 1 and 3 <= len(span.ticks) <= 7


def test_curve_path_rises_to_the_right():
    x, y = Axis(0, 10, (0, 10)), Axis(2, 6, (2, 6))
    assert curve_path([(0, 2), (5, 3), (10, 6)], x, y, 200, 100) == "M0.00,100.00L100.00,75.00L200.00,0.00"
