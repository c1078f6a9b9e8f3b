"""Codecs for whole utterances: batch = solo, nothing streams, and the old published files load."""

from __future__ import annotations

import copy
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from tokenizer import Codec, InputError
from tokenizer.network.attention import FullAttention, RelativeBias
from tokenizer.network.padding import FrameDownscale, SameConv1d


def noise(samples: int, seed: int) -> Tensor:
    """float64 [samples]: noise whose level and colour wander."""
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(samples, generator=generator, dtype=torch.float64)
    phase = torch.cumsum(torch.rand(samples, generator=generator, dtype=torch.float64), 0) / 5
    return (0.3 * white + torch.sin(phase)) * (0.2 + 0.15 * torch.sin(phase / 900))


def changed(codec: Codec, **extras: Any) -> dict[str, Any]:
    """The codec's configuration with `extras` in both focal stages, rates set apart."""
    raw = copy.deepcopy(codec.config.to_dict())
    factors = extras.pop("factors", None)
    for stage, key in (("compressor_config", "downscale_factors"), ("decompressor_config", "upscale_factors")):
        raw[stage] |= extras
        if factors:
            raw[stage][key] = factors
    return raw


@pytest.fixture(scope="module", params=["50 Hz", "25 Hz", "12.5 Hz"])
def codec(request: pytest.FixtureRequest, whole_codec: Codec, make_codec: Callable[..., Codec]) -> Codec:
    """Float64 codecs of each rate; the first has every optional layer switched on."""
    if request.param == "25 Hz":
        return copy.deepcopy(whole_codec).double()
    extras = {"use_post_norm": True, "use_layerscale": True, "layerscale_init": 0.5, "normalize_modulator": True}
    raw = (
        changed(whole_codec, factors=[2, 2])
        if request.param == "12.5 Hz"
        else changed(whole_codec, factors=[1, 1], **extras)
    )
    return make_codec(raw, seed=3).double()


def test_batch_equals_solo(codec: Codec) -> None:
    rng = random.Random(3)
    # Around one frame's field of view (400), two frames, and where the last token of each rate begins.
    lengths = [rng.randint(1, 40_000) for _ in range(6)] + [1, 9, 200, 399, 400, 719, 720, 1039, 1040, 1359, 1360]
    batch = torch.full((len(lengths), max(lengths)), 7.0, dtype=torch.float64)  # what lies beyond must not matter
    for row, length in enumerate(lengths):
        batch[row, :length] = noise(length, row)
    tokens = codec.encode(batch, torch.tensor(lengths))
    waves = codec.decode(tokens)
    for row, length in enumerate(lengths):
        count = codec.token_count(length)
        solo = codec.encode(batch[row, :length])[0]
        assert len(solo) == count and torch.equal(solo, tokens[row, :count]), length
        assert (tokens[row, count:] == -1).all()
        samples = count * codec.samples_per_token
        # 1e-12: float64 sums in another order differ by a few units in the sixteenth digit
        torch.testing.assert_close(waves[row, :samples], codec.decode(solo)[0], rtol=0, atol=1e-12)
        assert (waves[row, samples:] == 0).all()
    assert len(tokens.unique()) > 16  # the comparison is of varied tokens


def test_every_token_sees_the_whole_utterance(codec: Codec) -> None:
    wave = noise(30_000, 20)
    other = wave.clone()
    other[-3000:] = noise(3000, 21)
    far = 25_000 // codec.hop_samples
    latents, changed_latents = (codec.latents(codec.features(x))[:, :far] for x in (wave, other))
    assert ((latents - changed_latents).abs().amax(-1) > 0).all()


@pytest.mark.parametrize("samples", [1, 10, 399, 400, 401, 719, 720, 16_000, 64_000])
def test_frames_are_those_of_convolutions_without_padding(codec: Codec, samples: int) -> None:
    frames = samples
    for kernel, stride in zip(codec.config.encoder.kernel_sizes, codec.config.encoder.strides, strict=True):
        frames = max(1, (frames - kernel) // stride + 1)
    assert codec.features(noise(samples, 0)).shape[1] == frames
    assert codec.token_count(samples) == math.ceil(frames / codec.decompressor.upscale)


def test_pieces_and_blocks_change_nothing(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = torch.stack([noise(40_000, 30), noise(40_000, 31)])
    lengths = torch.tensor([40_000, 17_321])
    whole = codec.encode(wave, lengths)
    monkeypatch.setattr("tokenizer.network.encoder.PIECE_FRAMES", 7)
    monkeypatch.setattr("tokenizer.network.attention.SCORES", 2000)
    assert torch.equal(codec.encode(wave, lengths), whole)


def test_full_attention_is_its_definition() -> None:
    torch.manual_seed(0)
    attention, relative = FullAttention(12, 3).double(), RelativeBias(8, 3, 10).double()
    x, lengths = torch.randn(2, 9, 12, dtype=torch.float64), torch.tensor([9, 5])
    torch.nn.init.normal_(attention.gru_rel_pos_const)
    got = attention(x, relative, lengths)
    for row, length in enumerate(lengths.tolist()):
        q, k, v = attention.qkv_proj(x[row, :length]).chunk(3, dim=-1)
        heads = []
        for head in range(3):
            part = slice(4 * head, 4 * head + 4)
            scores = q[:, part] @ k[:, part].T / 4**0.5
            for t in range(length):
                values = attention.gru_rel_pos_linear(x[row, t, part])
                update, reset = values[:4].sum().sigmoid(), values[4:].sum().sigmoid()
                gate = update * (reset * attention.gru_rel_pos_const[0, head, 0, 0] - 1) + 2
                for j in range(length):
                    scores[t, j] += gate * relative.weight[relative.buckets(torch.tensor(j - t)), head]
            heads.append(scores.softmax(-1) @ v[:, part])
        torch.testing.assert_close(got[row, :length], attention.out_proj(torch.cat(heads, -1)))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("kernel", [1, 2, 5, 6])
def test_same_convolution_is_that_of_torch(kernel: int) -> None:
    torch.manual_seed(kernel)
    conv, x = SameConv1d(4, 4, kernel, groups=2), torch.randn(2, 11, 4)
    expected = F.conv1d(x.transpose(1, 2), conv.weight, conv.bias, padding="same", groups=2).transpose(1, 2)
    torch.testing.assert_close(conv(x, torch.tensor([11, 11])), expected)


def test_downscale_fills_the_last_group_with_zeros() -> None:
    torch.manual_seed(0)
    conv, x = FrameDownscale(3, 5, 4), torch.randn(2, 10, 3)
    y, lengths = conv(x, torch.tensor([10, 5]))
    assert y.shape == (2, 3, 5) and lengths.tolist() == [3, 2]
    last = torch.zeros(4, 3)
    last[:1] = x[1, 4:5]
    torch.testing.assert_close(y[1, 1], torch.einsum("oik,ki->o", conv.weight, last) + conv.bias)


def test_rates(codec: Codec) -> None:
    assert codec.sample_rate_in == codec.sample_rate_out == 16000 and codec.latency_ms == math.inf
    assert codec.token_rate * codec.samples_per_token == 16000 and not codec.causal
    assert codec.token_rate in (50.0, 25.0, 12.5)


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.init_state(1),
        lambda c: c.encode_step(torch.zeros(1, 1280), None),
        lambda c: c.decode_step(torch.zeros(1, 4, dtype=torch.int64), None),
        lambda c: c.chunk_samples,
        lambda c: c.tokens_per_chunk,
    ],
)
def test_streaming_is_refused(whole_codec: Codec, call: Callable[[Codec], Any]) -> None:
    with pytest.raises(InputError, match=r"codec unnamed does not stream.*use a causal codec"):
        call(whole_codec)


def test_half_an_hour_is_the_limit(whole_codec: Codec) -> None:
    with pytest.raises(InputError, match=r"1801 s of audio.*at most 1800 s"):
        whole_codec.encode(torch.zeros(1801 * 16000))


def test_filling_alone_decodes_to_silence(whole_codec: Codec) -> None:
    waves = whole_codec.decode(torch.tensor([[3, 7, 5], [-1, -1, -1]]))
    assert (waves[1] == 0).all() and (waves[0] != 0).any()


def old_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as version 0.0.1 of the published code names them."""
    old = {"encoder.encoder.norm.weight": torch.ones(16), "encoder.encoder.norm.bias": torch.zeros(16)}
    for name, tensor in weights.items():
        if "qkv_proj" in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                old[name.replace("qkv_proj", f"{part}_proj")] = piece.clone()
            continue
        name = re.sub(r"^(compressor\.layers\.\d)\.downscale\.", r"\1.0.", name)
        name = re.sub(r"^(compressor\.layers\.\d)\.focal_block\.", r"\1.1.", name)
        name = re.sub(r"^(decompressor\.layers\.\d)\.focal_block\.", r"\1.0.", name)
        old[re.sub(r"^(decompressor\.layers\.\d)\.upscale\.", r"\1.1.", name)] = tensor
    return old


def test_first_published_files_load(whole_codec: Codec, whole_codec_dir: Path, tmp_path: Path) -> None:
    weights = old_names(load_file(whole_codec_dir / "model.safetensors"))
    assert "compressor.layers.0.0.downscale.weight" in weights and "decompressor.layers.1.1.upscale.weight" in weights
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(whole_codec.config.to_dict()))
    assert Codec.from_pretrained(tmp_path).fingerprint == whole_codec.fingerprint
    del weights["encoder.encoder.layers.1.attention.k_proj.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"qkv_proj.bias has shape \(32,\)"):
        Codec.from_pretrained(tmp_path)
