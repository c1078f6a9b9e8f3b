"""FEATURES -> WAVE: the causal WaveNeXt decoder (Okamoto et al., "WaveNeXt", ASRU 2023; causal: arXiv 2509.16195).

The head is WaveNeXt's Linear, as published, or Vocos' inverse Fourier transform made causal, which learns far faster
from spectral losses alone (docs/experiments.md).

Legend: B batch, T frames, S samples, D channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.network.stage_configs import DecoderConfig, VocosConfig
from tokenizer.network.streaming import CausalConv1d, ConvState


class ConvNeXtLayers(nn.Module):
    """The layers of a ConvNeXt block (arXiv 2201.03545) around any depthwise convolution."""

    def __init__(self, config: DecoderConfig | VocosConfig, dwconv: nn.Module) -> None:
        super().__init__()
        scale = 1 / config.num_layers if config.layerscale_init is None else config.layerscale_init
        self.dwconv = dwconv
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.pwconv1 = nn.Linear(config.dim, config.ffn_dim)
        self.pwconv2 = nn.Linear(config.ffn_dim, config.dim)
        self.gamma = nn.Parameter(torch.full((config.dim,), scale))

    def mix(self, x: Tensor) -> Tensor:
        """What follows the convolution: LayerNorm, two pointwise layers with GELU, layer scale; [B, T, D] kept."""
        return self.gamma * self.pwconv2(F.gelu(self.pwconv1(self.norm(x))))


class ConvNeXtBlock(ConvNeXtLayers):
    """A ConvNeXt block that sees the past."""

    def __init__(self, config: DecoderConfig) -> None:
        dwconv = CausalConv1d(config.dim, config.dim, config.kernel_size, groups=config.dim, replicate=False)
        super().__init__(config, dwconv)

    def step(self, x: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        y, state = self.dwconv.step(x, state)
        return x + self.mix(y), state


class Backbone(nn.Module):
    """[B, T, D_in] -> [B, T, D]."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embedding = CausalConv1d(config.input_dim, config.dim, config.kernel_size, replicate=False)
        self.input_norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.layers = nn.ModuleList(ConvNeXtBlock(config) for _ in range(config.num_layers))
        self.output_norm = nn.LayerNorm(config.dim, eps=1e-6)


class LinearHead(nn.Module):
    """One Linear from a frame's channels to its samples, as published."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.dim, config.hop_length)

    def init_state(self, batch: int) -> Tensor:
        return self.proj.weight.new_zeros(batch, 0)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] -> [B, T * hop]."""
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 would add noise 50 dB below each sample
            return self.proj(x.to(self.proj.weight.dtype)).flatten(1), state


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
            log_magnitude, phase = self.proj(x.to(self.proj.weight.dtype)).chunk(2, dim=-1)
            magnitude = log_magnitude.clamp(max=self.max_log_magnitude).exp()
            spectrum = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], dim=-1)
            frames = spectrum @ self.get_buffer("basis")
            total = frames.shape[1] * self.hop
            summed = overlap_add(frames, self.hop)
            summed = torch.cat([summed[:, : state.shape[1]] + state, summed[:, state.shape[1] :]], dim=1)
            return summed[:, :total], summed[:, total:]


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """[B, T, N] -> [B, (T - 1) * hop + N]: frame t is added from sample t * hop on."""
    overlap, length = -(-frames.shape[2] // hop), (frames.shape[1] - 1) * hop + frames.shape[2]
    pieces = F.pad(frames, (0, overlap * hop - frames.shape[2])).unflatten(2, (overlap, hop))
    rows = [F.pad(pieces[:, :, k].flatten(1), (k * hop, (overlap - 1 - k) * hop)) for k in range(overlap)]
    return sum(rows[1:], rows[0])[:, :length]


class Decoder(nn.Module):
    """[B, T, D] -> [B, T * hop_length], in [-1, 1]."""

    class State(NamedTuple):
        """head: [B, n_fft - hop] of overlapping samples; empty for the linear head."""

        embedding: ConvState
        layers: tuple[ConvState, ...]
        head: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        self.head = LinearHead(config) if config.head == "linear" else FourierHead(config)

    def init_state(self, batch: int) -> State:
        layers = tuple(layer.dwconv.init_state(batch) for layer in self.backbone.layers)
        return self.State(self.backbone.embedding.init_state(batch), layers, self.head.init_state(batch))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        x, embedding_state = self.backbone.embedding.step(x, state.embedding)
        x, states = self.backbone.input_norm(x), []
        for layer, layer_state in zip(self.backbone.layers, state.layers, strict=True):
            x, layer_state = layer.step(x, layer_state)
            states.append(layer_state)
        samples, head_state = self.head.step(self.backbone.output_norm(x), state.head)
        return samples.clamp(-1.0, 1.0), self.State(embedding_state, tuple(states), head_state)
