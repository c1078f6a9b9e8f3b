"""LATENTS -> TOKENS: binary spherical quantization (arXiv 2406.07548), without parameters.

A latent is projected on the unit sphere; each coordinate's sign, divided by sqrt(bits), is the code. The token is the
integer of the sign bits, the first coordinate being the most significant.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.network.stage_configs import QuantizerConfig


class BinarySphericalQuantizer(nn.Module):
    """Conversions between latents [..., bits], tokens int64 [...] and codes [..., bits]."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.bits = config.bits
        self.scale = self.bits**-0.5
        self.register_buffer("weights", 2 ** torch.arange(self.bits - 1, -1, -1), persistent=False)

    def normalize(self, latents: Tensor) -> Tensor:
        """Project on the unit sphere."""
        return F.normalize(latents, dim=-1)

    def tokens(self, latents: Tensor) -> Tensor:
        """Latents (normalised or not) -> tokens; a coordinate of exactly zero counts as negative, as published."""
        return ((latents > 0) * self.get_buffer("weights")).sum(-1)

    def codes(self, tokens: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Tokens -> codes of +-1/sqrt(bits); -1, "no token", has the zero code."""
        bits = (tokens.clamp(min=0)[..., None] & self.get_buffer("weights")) != 0
        return (bits.to(dtype) * 2 - 1) * self.scale * (tokens >= 0).to(dtype)[..., None]

    def straight_through(self, latents: Tensor) -> Tensor:
        """Codes of normalised latents, with the gradient passed on unchanged (for training)."""
        codes = torch.where(latents > 0, self.scale, -self.scale).to(latents.dtype)
        return latents + (codes - latents).detach()
