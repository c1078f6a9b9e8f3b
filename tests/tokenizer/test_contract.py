"""Batch = solo = streaming: the tokens of an utterance depend on nothing but its audio."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenizer import Codec, InputError

CONV = {
    "encoder_config": {
        "causal": True,
        "hidden_dims": [8] * 7,
        "num_layers": 2,
        "dim": 16,
        "ffn_dim": 32,
        "num_heads": 2,
        "num_buckets": 16,
        "max_distance": 20,
        "conv_pos": 6,
        "conv_pos_groups": 2,
        "window_size": 12,
    },
    "compressor_config": {
        "causal": True,
        "input_dim": 16,
        "output_dim": 9,
        "hidden_dims": [16, 16],
        "downscale_factors": [1, 1],
        "focal_window": 3,
        "window_size": 10,
    },
    "quantizer_config": {"codebook_size": 512},
    "decompressor_config": {
        "causal": True,
        "input_dim": 9,
        "output_dim": 16,
        "hidden_dims": [16, 16],
        "upscale_factors": [1, 1],
        "focal_window": 3,
        "window_size": 10,
        "last_window_size": 14,
    },
    "decoder_config": {"causal": True, "input_dim": 16, "num_layers": 2, "dim": 16, "ffn_dim": 32, "hop_length": 480},
}


def halved_rate() -> dict[str, Any]:
    """Two frames a token, every optional layer of the focal blocks switched on."""
    raw = copy.deepcopy(CONV)
    extras = {"use_post_norm": True, "use_layerscale": True, "layerscale_init": 0.5, "normalize_modulator": True}
    raw["compressor_config"] |= {"downscale_factors": [2, 1], **extras}
    raw["decompressor_config"] |= {"upscale_factors": [1, 2], **extras}
    return raw


def without_lookahead() -> dict[str, Any]:
    """Chunks of one frame, 20 ms: nothing to refine."""
    raw = copy.deepcopy(CONV)
    raw["encoder_config"]["lookahead_size"] = raw["decompressor_config"]["lookahead_size"] = 0
    return raw


@pytest.fixture(params=["logmel", "comb", "conv", "halved_rate", "without_lookahead"])
def codec(request: pytest.FixtureRequest, tiny_codec: Codec) -> Codec:
    """Float64 codecs of every kind of layer, with windows much shorter than the clips below."""
    if request.param == "logmel":
        return copy.deepcopy(tiny_codec).double()
    if request.param == "comb":
        return copy.deepcopy(request.getfixturevalue("comb_codec")).double()
    raw = {"conv": CONV, "halved_rate": halved_rate(), "without_lookahead": without_lookahead()}[request.param]
    return request.getfixturevalue("make_codec")(raw, seed=1).double()


def test_last_window_and_refiner_follow_the_configuration(make_codec: Callable[..., Codec]) -> None:
    decompressor = make_codec(CONV, seed=1).decompressor
    widest = [layer.focal_block.modulation.layers[-1][0].kernel_size[0] for layer in decompressor.layers]
    assert widest == [10, 14]
    assert any(name.startswith("refiner") for name in decompressor.state_dict())
    alone = make_codec(without_lookahead(), seed=1)
    assert alone.latency_ms == 20
    assert not any(name.startswith("refiner") for name in alone.decompressor.state_dict())


def speech_like(samples: int, seed: int) -> Tensor:
    """Noise with a moving spectrum and level, float64 [samples]: no two frames alike."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, generator=generator, dtype=torch.float64)
    smooth = torch.cumsum(noise, 0) / 50
    level = torch.nn.functional.interpolate(torch.rand(1, 1, samples // 800 + 2, generator=generator).double(), samples)
    return (0.3 * noise + torch.sin(smooth)) * level[0, 0] * 0.3


def encode_streaming(codec: Codec, wave: Tensor, cuts: random.Random) -> Tensor:
    """Encode [S] in random numbers of chunks at a time -> [T]."""
    padded = torch.nn.functional.pad(wave[None], (0, -len(wave) % codec.chunk_samples))
    state, out, at = codec.init_state(1), [], 0
    while at < padded.shape[1]:
        step = codec.chunk_samples * cuts.randint(1, 7)
        tokens, state = codec.encode_step(padded[:, at : at + step], state)
        out.append(tokens)
        at += step
    return torch.cat(out, 1)[0, : -(-len(wave) // codec.hop_samples)]


def decode_streaming(codec: Codec, tokens: Tensor, cuts: random.Random) -> Tensor:
    """Decode [T] in random numbers of chunks at a time -> [S]."""
    padded = torch.nn.functional.pad(tokens[None], (0, -len(tokens) % codec.tokens_per_chunk), value=-1)
    state, out, at = codec.init_state(1), [], 0
    while at < padded.shape[1]:
        step = codec.tokens_per_chunk * cuts.randint(1, 7)
        wave, state = codec.decode_step(padded[:, at : at + step], state)
        out.append(wave)
        at += step
    return torch.cat(out, 1)[0, : len(tokens) * codec.samples_per_token]


def test_batch_equals_solo_equals_streaming(codec: Codec) -> None:
    rng = random.Random(3)
    lengths = [rng.randint(1, 60000) for _ in range(5)] + [1, codec.hop_samples, codec.chunk_samples + 1]
    batch = torch.zeros(len(lengths), max(lengths), dtype=torch.float64)
    for row, length in enumerate(lengths):
        batch[row, :length] = speech_like(length, row)
        batch[row, length:] = 7.0  # what lies beyond a row's length must not matter
    tokens = codec.encode(batch, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        count = -(-length // codec.hop_samples)
        assert (tokens[row, count:] == -1).all()
        wave = batch[row, :length]
        assert torch.equal(codec.encode(wave)[0], tokens[row, :count])
        assert torch.equal(encode_streaming(codec, wave, rng), tokens[row, :count])
    assert len(tokens.unique()) > 16  # the comparison is of varied tokens


def test_decoding_batch_equals_solo_equals_streaming(codec: Codec) -> None:
    rng = random.Random(4)
    counts = [1, 2, 3, 4, 50, 131, 200]
    tokens = torch.full((len(counts), max(counts)), -1)
    for row, count in enumerate(counts):
        tokens[row, :count] = torch.tensor([rng.randrange(codec.codebook_size) for _ in range(count)])
    waves = codec.decode(tokens)
    assert waves.shape == (len(counts), max(counts) * codec.samples_per_token)
    for row, count in enumerate(counts):
        samples = count * codec.samples_per_token
        solo = codec.decode(tokens[row, :count])[0]
        # 1e-12: float64 sums in another order differ by a few units in the sixteenth digit
        torch.testing.assert_close(waves[row, :samples], solo, rtol=0, atol=1e-12)
        streamed = decode_streaming(codec, tokens[row, :count], rng)
        torch.testing.assert_close(streamed, solo, rtol=0, atol=1e-12)
        assert (waves[row, samples:] == 0).all()


def test_longer_than_one_offline_segment(tiny_codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = copy.deepcopy(tiny_codec).double()
    wave = speech_like(100_000, 5)
    whole = codec.encode(wave)
    decoded = codec.decode(whole)
    monkeypatch.setattr("tokenizer.model.OFFLINE_FRAMES", 16)
    assert torch.equal(codec.encode(wave), whole)
    torch.testing.assert_close(codec.decode(whole), decoded, rtol=0, atol=1e-12)


def test_a_token_sees_its_chunk_and_the_past_only(codec: Codec) -> None:
    wave = speech_like(40 * codec.chunk_samples, 6)
    changed = wave.clone()
    boundary = 20 * codec.chunk_samples
    changed[boundary:] = speech_like(len(wave) - boundary, 7)
    before = boundary // codec.hop_samples
    first, second = codec.encode(wave)[0], codec.encode(changed)[0]
    assert torch.equal(first[:before], second[:before])
    assert not torch.equal(first[before:], second[before:])


def test_stages_compose_to_encode_and_decode(codec: Codec) -> None:
    wave = speech_like(30_000, 8)
    tokens = codec.encode(wave)
    latents = codec.latents(codec.features(wave))
    assert torch.equal(codec.quantizer.tokens(latents)[:, : tokens.shape[1]], tokens)
    codes = codec.codes(tokens)
    assert torch.equal(codes > 0, latents[:, : tokens.shape[1]] > 0)
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones_like(codes[..., 0]))
    assert codec.dequantize(tokens).shape == (1, tokens.shape[1] * codec.decompressor.upscale, 16)


def test_rates(codec: Codec, request: pytest.FixtureRequest) -> None:
    frames = 1 if "without_lookahead" in request.node.name else 4
    assert (codec.sample_rate_in, codec.latency_ms, codec.chunk_samples) == (16000, 20.0 * frames, 320 * frames)
    assert codec.token_rate * codec.samples_per_token == codec.sample_rate_out
    assert codec.bitrate == codec.token_rate * codec.bits_per_token
    assert 2**codec.bits_per_token == codec.codebook_size


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.encode(torch.zeros(2, 3, 100)), r"shape \(2, 3, 100\)"),
        (lambda c: c.encode(torch.zeros(100, dtype=torch.int16)), "scale integers"),
        (lambda c: c.encode(torch.zeros(0)), "at least one sample"),
        (lambda c: c.encode(torch.tensor([0.0, float("nan")])), "NaN"),
        (lambda c: c.encode(torch.zeros(2, 100), torch.tensor([100])), "one number of samples per row"),
        (lambda c: c.encode(torch.zeros(2, 100), torch.tensor([0, 100])), "from 1 to 100"),
        (lambda c: c.encode(torch.full((1, 100), 1e30)), "peak of 1e"),
        (lambda c: c.encode_step(torch.full((1, 1280), float("nan")), c.init_state(1)), "peak of nan"),
        (lambda c: c.encode_step(torch.zeros(1, 1280, dtype=torch.int16), c.init_state(1)), "scale integers"),
        (lambda c: c.encode_step(torch.zeros(2, 1280), c.init_state(1)), "2 streams, but the state is of 1"),
        (lambda c: c.decode_step(torch.zeros(2, 4, dtype=torch.int64), c.init_state(1)), "2 streams"),
        (lambda c: c.encode_step(torch.zeros(1, 100), c.init_state(1)), r"n \* 1280"),
        (lambda c: c.decode(torch.tensor([[0, 999999]])), "another codec"),
        (lambda c: c.decode(torch.zeros(1, 3)), "integers"),
        (lambda c: c.decode(torch.zeros(1, 0, dtype=torch.int64)), r"\(1, 0\)"),
        (lambda c: c.decode_step(torch.zeros(1, 1, dtype=torch.int64), c.init_state(1)), "whole number of chunks"),
    ],
)
def test_bad_input_is_named(tiny_codec: Codec, call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(tiny_codec)


@pytest.mark.parametrize("kind", ["tiny_codec_dir", "whole_codec_dir"])
def test_bfloat16_is_close(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    exact, rough = Codec.from_pretrained(folder), Codec.from_pretrained(folder, precision="bf16")
    assert rough.fingerprint == exact.fingerprint
    wave = 0.1 * torch.randn(2, 30_000, generator=torch.Generator().manual_seed(6))
    tokens = exact.encode(wave)
    assert (exact.codes(rough.encode(wave)) != exact.codes(tokens)).float().mean() < 0.1
    heard, reference = rough.decode(tokens), exact.decode(tokens)
    assert heard.dtype == torch.float32
    assert (heard - reference).norm() < 0.1 * reference.norm()
