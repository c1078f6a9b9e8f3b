"""Configurations: published files load, mistakes are named."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tokenizer import CodecConfig, InputError


def changed(raw: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(raw)
    *sections, key = dotted.split(".")
    target = raw
    for section in sections:
        target = target[section]
    target[key] = value
    return raw


def test_published_layout_survives_json(tiny_codec) -> None:
    raw = json.loads(json.dumps(tiny_codec.config.to_dict()))
    assert CodecConfig.from_dict(raw) == tiny_codec.config


@pytest.mark.parametrize(
    ("dotted", "value", "message"),
    [
        ("encoder_config.dimension", 3, "encoder_config: unknown key 'dimension'"),
        ("encoder_confg", {}, "unknown key 'encoder_confg'"),
        ("encoder_name", "Whisper", "encoder_name 'Whisper'"),
        ("encoder_config.dim", "16", "dim is '16', expected int"),
        ("encoder_config.dim", True, "dim is True, expected int"),
        ("encoder_config.strides", [5, 2.5], "strides"),
        ("encoder_config.strides", [5, 2], r"hidden_dims \(7\).*strides \(2\)"),
        ("encoder_config.dim", 18, "encoder.dim 18 must equal compressor.input_dim 16"),
        ("encoder_config.num_heads", 3, "multiple of num_heads 3"),
        ("encoder_config.window_size", 9, "window_size 9"),
        ("encoder_config.causal", False, r"encoder false, compressor true.*in all of them"),
        ("decoder_name", "Vocos", "unknown key 'head'"),
        ("decoder_name", "HiFiGAN", "expected 'WaveNeXt' or 'Vocos'"),
        ("encoder_config.stem", "fft", "stem 'fft'"),
        ("quantizer_config.codebook_size", 1000, "1000 must be a power of two"),
        ("quantizer_config.codebook_size", 512, "compressor.output_dim 8 must equal quantizer.bits 9"),
        ("decompressor_config.lookahead_size", 1, "lookahead_size"),
        ("decompressor_config.upscale_factors", [2], "downscale_factors 1 must equal"),
        ("decoder_config.head", "gan", "head 'gan'"),
        ("decoder_config.n_fft", 700, "n_fft 700"),
        ("decoder_config", [], "expected a mapping, found list"),
    ],
)
def test_mistakes_are_named(tiny_codec, dotted: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CodecConfig.from_dict(changed(tiny_codec.config.to_dict(), dotted, value), "here")


@pytest.mark.parametrize(
    ("dotted", "value", "message"),
    [
        ("decoder_name", "WaveNeXt", "is false and decoder_name WaveNeXt"),
        ("encoder_config.stem", "logmel", "'logmel' is for streaming"),
        ("decoder_config.causal", True, "differs between stages"),
        ("decoder_config.n_fft", 320, "n_fft 320 and hop_length 320"),
    ],
)
def test_mistakes_in_codecs_for_whole_utterances_are_named(whole_codec, dotted: str, value: Any, message: str) -> None:
    raw = whole_codec.config.to_dict()
    if dotted == "decoder_name":
        raw["decoder_config"] = {"input_dim": 16}
    with pytest.raises(InputError, match=message):
        CodecConfig.from_dict(changed(raw, dotted, value), "here")


def test_old_keys_of_the_vocos_decoder_are_read(whole_codec) -> None:
    raw = whole_codec.config.to_dict()
    decoder = raw["decoder_config"]
    decoder["input_channels"] = decoder.pop("input_dim")
    assert CodecConfig.from_dict(changed(raw, "decoder_config.padding", 3)) == whole_codec.config


@pytest.mark.parametrize("key", ["num_heads", "conv_pos_groups"])
def test_a_size_of_zero_is_refused(key):
    with pytest.raises(InputError, match=f"encoder_config: {key} is 0; expected 1 to 1024"):
        CodecConfig.from_dict({"encoder_config": {key: 0}})
