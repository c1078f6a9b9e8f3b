"""FEATURES -> WAVE for whole utterances: the Vocos decoder (arXiv 2306.00814) of the non-causal family.

Legend: B batch, T frames, S samples, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenizer.network.decoder import ConvNeXtLayers
from tokenizer.network.fourier import overlap_add
from tokenizer.network.padding import SameConv1d, blank, present
from tokenizer.network.stage_configs import VocosConfig


class VocosBlock(ConvNeXtLayers):
    """A ConvNeXt block that sees both sides."""

    def __init__(self, config: VocosConfig) -> None:
        super().__init__(config, SameConv1d(config.dim, config.dim, config.kernel_size, groups=config.dim))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x + self.mix(self.dwconv(x, lengths))


class VocosBackbone(nn.Module):
    """[B, T, D_in] and lengths in frames, int64 [B] -> [B, T, D]."""

    def __init__(self, config: VocosConfig) -> None:
        super().__init__()
        self.embedding = SameConv1d(config.input_dim, config.dim, config.kernel_size)
        self.input_norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.layers = nn.ModuleList(VocosBlock(config) for _ in range(config.num_layers))
        self.output_norm = nn.LayerNorm(config.dim, eps=1e-6)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = self.input_norm(self.embedding(x, lengths))
        for layer in self.layers:
            x = layer(x, lengths)
        return self.output_norm(x)


class InverseFourierHead(nn.Module):
    """Magnitude and phase of each frame's spectrum, inverse transform, overlap-add, division by the summed windows.

    Frame t is centred on samples [t * hop, (t + 1) * hop); what reaches beyond the utterance is cut off.
    """

    loudest_bin = 100.0  # bounds exp() for inputs far from speech, as published
    window: Tensor

    def __init__(self, config: VocosConfig) -> None:
        super().__init__()
        self.n_fft, self.hop = config.n_fft, config.hop_length
        self.proj = nn.Linear(config.dim, config.n_fft + 2)
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """[B, T, D] and lengths in frames -> [B, T * hop], zeros beyond a row's length."""
        exact = torch.promote_types(x.dtype, torch.float32)  # Fourier transforms know no half precision
        log_magnitude, phase = self.proj(x).to(exact).chunk(2, dim=-1)
        spectrum = torch.polar(log_magnitude.exp().clamp(max=self.loudest_bin), phase)
        window = self.window.to(exact)
        frames = torch.fft.irfft(spectrum, self.n_fft, dim=-1) * window
        windows = window.square().expand_as(frames)
        # Each row's own envelope: near its end fewer windows overlap, whatever the other rows do there.
        summed = self._overlap_add(blank(frames, lengths)) / self._overlap_add(blank(windows, lengths)).clamp(min=1e-11)
        inside = present(lengths * self.hop, summed.shape[1])
        return summed.masked_fill(~inside, 0).to(x.dtype)

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """[B, T, n_fft] -> [B, T * hop]."""
        summed, overlap = overlap_add(frames, self.hop), self.n_fft - self.hop
        return summed[:, overlap // 2 : summed.shape[1] - overlap // 2]


class Vocos(nn.Module):
    """[B, T, D] and lengths in frames, int64 [B] -> [B, T * hop_length], in [-1, 1]."""

    def __init__(self, config: VocosConfig) -> None:
        super().__init__()
        self.backbone = VocosBackbone(config)
        self.head = InverseFourierHead(config)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.head(self.backbone(x, lengths), lengths).clamp(-1.0, 1.0)
