"""How often rounding flips a code bit: the same audio encoded alone, in a batch, in chunks, or by another engine.

Legend: S samples, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from tokenizer import Codec
from tokenizer.metrics.codes import flipped_bits


class Flips(NamedTuple):
    """Bits that differ of `bits` compared. `margin` is the largest |latent| at one of them: rounding can only flip what
    is next to zero. None where nothing flipped, or where the latents are not to be had (ONNX Runtime)."""

    flipped: int
    bits: int
    margin: float | None

    @property
    def rate(self) -> float:
        return self.flipped / self.bits


def encode_alone(codec: Any, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Tokens int [T] of each wave float32 [S], one after another."""
    return [codec.encode(torch.from_numpy(wave))[0].cpu().numpy() for wave in waves]


def encode_together(codec: Any, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The same as one padded batch."""
    lengths = torch.tensor([len(wave) for wave in waves])
    batch = np.stack([np.pad(wave, (0, int(lengths.max()) - len(wave))) for wave in waves])
    tokens = codec.encode(torch.from_numpy(batch), lengths).cpu().numpy()
    return [row[row >= 0] for row in tokens]


def compare(codec: Any, waves: Sequence[np.ndarray], tokens: list[np.ndarray], others: list[np.ndarray]) -> Flips:
    """Bits that differ between two encodings of the same waves by the codec (or another engine of it)."""
    differ = [flipped_bits(a, b, codec.bits_per_token) for a, b in zip(tokens, others, strict=True)]
    flipped = sum(int(rows.sum()) for rows in differ)
    margin = None
    if flipped and isinstance(codec, Codec):
        sizes = [codec.latents(codec.features(torch.from_numpy(wave)))[0].abs().cpu().numpy() for wave in waves]
        margin = max(float(size[rows].max(initial=0)) for size, rows in zip(sizes, differ, strict=True))
    return Flips(flipped, sum(rows.size for rows in differ), margin)
