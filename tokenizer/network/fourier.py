"""FEATURES -> WAVE through a spectrum: Vocos' head (arXiv 2306.00814), made causal.

Legend: B batch, T frames, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.network.stage_configs import DecoderConfig


class FourierHead(nn.Module):
    """Magnitude and phase of each frame's spectrum, then inverse transform and overlap-add (Vocos, arXiv 2306.00814).

    Causal: frame t adds to samples [t * hop, t * hop + n_fft), so its first hop is final when it has been added, and
    the rest waits in the state for the frames to come. No latency is added.
    """

    max_log_magnitude = 5.0  # bounds exp() for inputs far from speech

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.n_fft, self.hop = config.n_fft, config.hop_length
        bins = self.n_fft // 2 + 1
        self.proj = nn.Linear(config.dim, 2 * bins)
        nn.init.normal_(self.proj.weight, std=0.15 * config.dim**-0.5)
        with torch.no_grad():
            self.proj.bias.zero_()
            self.proj.bias[:bins] = -3.0  # start quiet: loud noise is the slowest beginning to learn from
        n = torch.arange(self.n_fft, dtype=torch.float64)
        hann = 0.5 - 0.5 * torch.cos(2 * torch.pi * n / self.n_fft)
        angle = 2 * torch.pi * torch.arange(bins, dtype=torch.float64)[:, None] * n[None] / self.n_fft
        weight = torch.full((bins, 1), 2.0, dtype=torch.float64)
        weight[0] = weight[-1] = 1.0  # the bins that have no mirror image
        scale = weight * hann * self.n_fft**-0.5
        # Inverse transform and window as one fixed matrix, rebuilt from the configuration: not part of the weights.
        self.register_buffer("basis", torch.cat([angle.cos() * scale, -angle.sin() * scale]).float(), persistent=False)

    def init_state(self, batch: int) -> Tensor:
        """[B, n_fft - hop], what earlier frames add to samples not yet out."""
        return self.proj.weight.new_zeros(batch, self.n_fft - self.hop)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] -> [B, T * hop]."""
        with torch.autocast(x.device.type, enabled=False):  # phases need more digits than bfloat16 has
            return self._wave(self._spectrum(x.to(self.proj.weight.dtype)), self.get_buffer("basis"), state)

    def _spectrum(self, x: Tensor) -> Tensor:
        """[B, T, D] -> real and imaginary parts of every bin, [B, T, n_fft + 2]."""
        log_magnitude, phase = self.proj(x).chunk(2, dim=-1)
        magnitude = log_magnitude.clamp(max=self.max_log_magnitude).exp()
        return torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], dim=-1)

    def _wave(self, spectrum: Tensor, basis: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Spectra, the basis that they are of, and what earlier frames add -> samples that are final, [B, T * hop], and
        what these frames add to those that follow."""
        total = spectrum.shape[1] * self.hop
        summed = overlap_add(spectrum @ basis, self.hop)
        summed = torch.cat([summed[:, : state.shape[1]] + state, summed[:, state.shape[1] :]], dim=1)
        return summed[:, :total], summed[:, total:]


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """[B, T, N] -> [B, (T - 1) * hop + N]: frame t is added from sample t * hop on."""
    overlap, length = -(-frames.shape[2] // hop), (frames.shape[1] - 1) * hop + frames.shape[2]
    pieces = F.pad(frames, (0, overlap * hop - frames.shape[2])).unflatten(2, (overlap, hop))
    rows = [F.pad(pieces[:, :, k].flatten(1), (k * hop, (overlap - 1 - k) * hop)) for k in range(overlap)]
    return sum(rows[1:], rows[0])[:, :length]
