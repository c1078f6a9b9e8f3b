"""The rows of an evaluation: every way from a clip to a resynthesis of it.

Legend: S samples, T tokens.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor

from pipelines.evaluation.ceiling import features_fit, from_features, from_latents
from pipelines.evaluation.clips import Clip
from pipelines.evaluation.peers import PEERS
from tokenizer import Codec
from tokenizer.metrics import METRICS_RATE
from tokenizer.metrics.codes import flip_bits

CODEC = "codec"
LATENTS, FEATURES = "latents not binarised", "encoder features"
FLIP_PROBABILITIES = (0.001, 0.01, 0.05)


@dataclass(frozen=True)
class System:
    """`resynthesise` takes a clip and the codec's tokens of it, int64 [T]: float32 [S] at METRICS_RATE."""

    name: str
    bitrate: float | None  # bits per second; None where it is not a finite number
    kind: str  # "codec", "ceiling", "flips" or "peer"
    resynthesise: Callable[[Clip, np.ndarray], np.ndarray]


def codec_systems(codec: Any) -> Iterator[System]:
    """The codec, its decoder on what was not quantized (PyTorch only), and the codec over a line that flips bits."""
    yield System(CODEC, codec.bitrate, "codec", lambda clip, tokens: _decoded(codec, tokens))
    if isinstance(codec, Codec):
        yield System(LATENTS, None, "ceiling", partial(_unquantized, codec, from_latents))
        if features_fit(codec):
            yield System(FEATURES, None, "ceiling", partial(_unquantized, codec, from_features))
    for probability in FLIP_PROBABILITIES:
        yield System(flips_name(probability), codec.bitrate, "flips", partial(_flipped, codec, probability))


def peer_systems(missing: dict[str, str]) -> Iterator[System]:
    """Other codecs whose programs are installed; into `missing` goes why one is not."""
    for peer in PEERS:
        if reason := peer.missing():
            missing[peer.name] = reason
        else:
            yield System(
                peer.name, peer.bitrate, "peer", partial(lambda peer, clip, _: peer.resynthesise(clip.wave), peer)
            )


def flips_name(probability: float) -> str:
    return f"{probability:.1%} of bits flipped"


def _decoded(codec: Any, tokens: np.ndarray) -> np.ndarray:
    return _at_metrics_rate(codec, codec.decode(torch.from_numpy(tokens)))


def _flipped(codec: Any, probability: float, clip: Clip, tokens: np.ndarray) -> np.ndarray:
    """Seeded by the clip's id, so that its errors do not depend on which other clips there are."""
    rng = np.random.default_rng([zlib.crc32(clip.id.encode()), round(1e6 * probability)])
    return _decoded(codec, flip_bits(tokens, codec.bits_per_token, probability, rng))


def _unquantized(codec: Codec, path: Callable[[Codec, Tensor], Tensor], clip: Clip, _: np.ndarray) -> np.ndarray:
    return _at_metrics_rate(codec, path(codec, torch.from_numpy(clip.wave)[None]))


def _at_metrics_rate(codec: Any, wave: Tensor) -> np.ndarray:
    return soxr.resample(wave[0].float().cpu().numpy(), codec.sample_rate_out, METRICS_RATE)
