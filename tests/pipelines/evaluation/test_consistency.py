"""Bits that rounding flips are counted, with the largest latent there."""

from __future__ import annotations

import pytest
import torch

from pipelines.evaluation.consistency import compare, encode_alone, encode_together


def test_batch_and_solo_agree_and_a_flip_is_seen(tiny_codec, speech) -> None:
    waves = [speech(seed, seconds) for seed, seconds in ((0, 0.7), (1, 1.3), (2, 0.31))]
    alone, together = encode_alone(tiny_codec, waves), encode_together(tiny_codec, waves)
    assert [len(row) for row in together] == [len(row) for row in alone]
    flips = compare(tiny_codec, waves, alone, together)
    assert flips.bits == 8 * sum(map(len, alone)) and flips.rate < 1e-3
    changed = [row.copy() for row in alone]
    changed[1][10] ^= 0b10000001
    flips = compare(tiny_codec, waves, alone, changed)
    latents = tiny_codec.latents(tiny_codec.features(torch.from_numpy(waves[1])))[0, 10].abs()
    assert flips.flipped == 2 and flips.margin == pytest.approx(max(latents[0].item(), latents[7].item()))
