"""The ceiling's paths are the codec's own: fed what the codec itself decodes from, they give what it decodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines.evaluation.ceiling import features_fit, from_features, from_latents


def wave(samples: int) -> torch.Tensor:
    loudness = np.linspace(0.05, 0.5, samples)
    return torch.from_numpy((np.random.default_rng(5).standard_normal(samples) * loudness)[None].astype(np.float32))


@pytest.mark.parametrize(("name", "samples"), [("tiny_codec", 16_123), ("whole_codec", 16_123)])
def test_binarised_latents_decode_as_tokens_do(name: str, samples: int, request, monkeypatch) -> None:
    codec, x = request.getfixturevalue(name), wave(samples)
    latents = codec.latents
    expected = codec.decode(codec.encode(x))
    free = from_latents(codec, x)
    assert free.shape == expected.shape and not torch.allclose(free, expected, atol=1e-3)
    monkeypatch.setattr(codec, "latents", lambda features: latents(features).sign() * codec.bits_per_token**-0.5)
    torch.testing.assert_close(from_latents(codec, x), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["tiny_codec", "whole_codec"])
def test_features_go_straight_into_the_decoder(name: str, request, monkeypatch) -> None:
    codec = request.getfixturevalue(name)
    assert features_fit(codec)
    x = wave(12_800)  # ten whole chunks: no filling that the refiner would hear
    tokens = codec.encode(x)
    assert from_features(codec, x).shape[1] == pytest.approx(codec.decode(tokens).shape[1], abs=codec.samples_per_token)
    monkeypatch.setattr(codec, "features", lambda _: codec.dequantize(tokens))
    torch.testing.assert_close(from_features(codec, x), codec.decode(tokens), atol=1e-5, rtol=0)
