"""Fixtures shared by all tests: a tiny codec with random weights, and the places of data that may be absent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenizer import Codec, CodecConfig
from tokenizer.network.comb import CombHead

BESIDE = Path(__file__).resolve().parents[2] / "shared"

TINY = {
    "encoder_config": {
        "causal": True,
        "stem": "logmel",
        "mel_bins": 16,
        "num_layers": 1,
        "dim": 16,
        "ffn_dim": 32,
        "num_heads": 2,
        "num_buckets": 16,
        "max_distance": 16,
        "conv_pos": 4,
        "conv_pos_groups": 2,
        "window_size": 8,
    },
    "compressor_config": {
        "causal": True,
        "input_dim": 16,
        "output_dim": 8,
        "hidden_dims": [16],
        "downscale_factors": [1],
        "focal_window": 3,
        "window_size": 6,
    },
    "quantizer_config": {"codebook_size": 256},
    "decompressor_config": {
        "causal": True,
        "input_dim": 8,
        "output_dim": 16,
        "hidden_dims": [16],
        "upscale_factors": [1],
        "focal_window": 3,
        "window_size": 6,
        "last_window_size": 6,
    },
    "decoder_config": {
        "causal": True,
        "input_dim": 16,
        "num_layers": 1,
        "dim": 16,
        "ffn_dim": 32,
        "hop_length": 320,
        "head": "istft",
    },
}


WHOLE = {
    "encoder_config": {
        "hidden_dims": [8] * 7,
        "num_layers": 2,
        "dim": 16,
        "ffn_dim": 32,
        "num_heads": 2,
        "num_buckets": 16,
        "max_distance": 20,
        "conv_pos": 6,
        "conv_pos_groups": 2,
    },
    "compressor_config": {
        "input_dim": 16,
        "output_dim": 9,
        "hidden_dims": [16, 12],
        "downscale_factors": [2, 1],
        "focal_window": 4,
        "focal_factor": 3,
    },
    "quantizer_config": {"codebook_size": 512},
    "decompressor_config": {
        "input_dim": 9,
        "output_dim": 16,
        "hidden_dims": [12, 16],
        "upscale_factors": [1, 2],
        "focal_window": 4,
        "focal_factor": 3,
    },
    "decoder_name": "Vocos",
    "decoder_config": {"input_dim": 16, "num_layers": 2, "dim": 16, "ffn_dim": 32},
}


def random_codec(raw: dict[str, Any], seed: int) -> Codec:
    """A codec with random weights whose tokens vary: its latents are shifted so that each has either sign.

    If it has a comb filter, that is at work: the wave is loud, with voices of wandering pitch.
    """
    torch.manual_seed(seed)
    codec = Codec.from_config(CodecConfig.from_dict(raw)).requires_grad_(False)
    features = codec.features(torch.randn(64_000) * torch.linspace(0, 0.5, 64_000))
    if codec.causal:
        latents, _ = codec.compressor.step(features, codec.compressor.init_state(1))
    else:
        latents, _ = codec.compressor(features, torch.tensor([features.shape[1]]))
    codec.compressor.out_proj.bias -= latents[0].median(0).values
    if isinstance(head := getattr(codec.decoder, "head", None), CombHead):
        head.proj.bias += 2.0
        head.source.weight.normal_(std=0.5)
        head.source.bias.copy_(torch.tensor([0.0, 1.0]))
    return codec


@pytest.fixture(scope="session")
def make_codec() -> Callable[..., Codec]:
    """`random_codec`, for tests that bring their own configuration."""
    return random_codec


@pytest.fixture(scope="session")
def tiny_codec() -> Codec:
    """8 bits at 50 Hz, 16 kHz in and out, random weights of a fixed seed; do not change it in place."""
    return random_codec(TINY, seed=0)


@pytest.fixture(scope="session")
def comb_codec(tiny_codec: Codec) -> Codec:
    """The same with a comb filter; do not change it in place."""
    raw = tiny_codec.config.to_dict()
    raw["decoder_config"]["head"] = "comb"
    return random_codec(raw, seed=1)


@pytest.fixture(scope="session")
def tiny_codec_dir(tiny_codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same codec as a directory for `Codec.from_pretrained`."""
    directory = tmp_path_factory.mktemp("codec")
    tiny_codec.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def whole_codec() -> Codec:
    """9 bits at 25 Hz, 16 kHz in and out, for whole utterances only, random weights; do not change it in place."""
    return random_codec(WHOLE, seed=2)


@pytest.fixture(scope="session")
def whole_codec_dir(whole_codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same codec as a directory for `Codec.from_pretrained`."""
    directory = tmp_path_factory.mktemp("whole_codec")
    whole_codec.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def speech_dir() -> Path:
    """A folder with train.jsonl.gz and test.jsonl.gz of real speech, beside the repository."""
    return _beside("speech")


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Outputs of the published implementation, beside the repository."""
    return _beside("parity")


def _beside(name: str) -> Path:
    if not (BESIDE / name).is_dir():
        pytest.skip(f"needs {BESIDE / name}, which is not part of this repository")
    return BESIDE / name
