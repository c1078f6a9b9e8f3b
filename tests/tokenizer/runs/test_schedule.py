"""The learning rate at the corners of its schedule."""

import pytest

from tokenizer.runs.schedule import warmup_cosine


def test_corners() -> None:
    def rate(step: int) -> float:
        return warmup_cosine(step, steps=110, warmup_steps=10, peak=1.0, final=0.2)

    assert [rate(0), rate(4), rate(9), rate(10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert [rate(60), rate(110), rate(500)] == pytest.approx([0.6, 0.2, 0.2])
    assert all(rate(step) > rate(step + 1) for step in range(10, 110))
