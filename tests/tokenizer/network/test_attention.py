"""The chunk mask and the relative bias against their definitions, written out slowly."""

from __future__ import annotations

import math

import pytest
import torch

from tokenizer.network.attention import RelativeBias, chunk_mask


@pytest.mark.parametrize("position", [0, 4, 8, 100])
def test_mask_is_its_definition(position: int) -> None:
    frames, past, chunk, window = 12, 8, 4, 12
    mask = chunk_mask(frames, past, chunk, window, torch.tensor([position]))[0, 0]
    for t in range(frames):
        query = position + t
        end = (query // chunk + 1) * chunk
        for slot in range(past + frames):
            key = position - past + slot
            assert bool(mask[t, slot]) == (max(0, end - window) <= key < end), (t, slot)


def test_bias_of_a_step_is_a_part_of_the_full_table() -> None:
    torch.manual_seed(0)
    bias = RelativeBias(32, 2, 50)
    step = bias(4, 20)
    for t in range(4):
        for slot in range(24):
            distance = torch.tensor(slot - 20 - t)
            expected = bias.weight[bias.buckets(distance)]
            torch.testing.assert_close(step[:, t, slot], expected)


def test_buckets_grow_logarithmically() -> None:
    bias = RelativeBias(320, 1, 800)
    distance = torch.arange(-900, 900)
    for d, bucket in zip(distance.tolist(), bias.buckets(distance).tolist(), strict=True):
        size = abs(d)
        expected = size if size < 80 else min(159, int(80 + 80 * math.log(size / 80) / math.log(10)))
        assert bucket - (160 if d > 0 else 0) in (expected, expected - 1, expected + 1)
        assert size >= 80 or bucket - (160 if d > 0 else 0) == size
