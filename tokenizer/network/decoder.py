"""FEATURES -> WAVE: the causal WaveNeXt decoder (Okamoto et al., "WaveNeXt", ASRU 2023; causal: arXiv 2509.16195).

The head is WaveNeXt's Linear, as published, or Vocos' inverse Fourier transform made causal, which learns far faster
from spectral losses alone (docs/experiments.md), or that with a comb filter at the pitch, for smoother voices.

Legend: B batch, T frames, S samples, D channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.network.comb import CombHead
from tokenizer.network.fourier import FourierHead
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


HEADS: dict[str, type[LinearHead] | type[FourierHead]] = {
    "linear": LinearHead,
    "istft": FourierHead,
    "comb": CombHead,
}


class Decoder(nn.Module):
    """[B, T, D] -> [B, T * hop_length], in [-1, 1]."""

    class State(NamedTuple):
        """head: [B, n_fft - hop] of overlapping samples, empty for the linear head; or a `CombHead.State`."""

        embedding: ConvState
        layers: tuple[ConvState, ...]
        head: Tensor | CombHead.State

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        self.head: LinearHead | FourierHead = HEADS[config.head](config)

    def init_state(self, batch: int) -> State:
        layers = tuple(layer.dwconv.init_state(batch) for layer in self.backbone.layers)
        return self.State(self.backbone.embedding.init_state(batch), layers, self.head.init_state(batch))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        x, state = self.hidden(x, state)
        samples, head_state = self.head.step(x, state.head)  # type: ignore[arg-type]
        return samples.clamp(-1.0, 1.0), state._replace(head=head_state)

    def hidden(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """[B, T, D_in] -> what the head gets, [B, T, D]; the state of all but the head moves on."""
        x, embedding_state = self.backbone.embedding.step(x, state.embedding)
        x, states = self.backbone.input_norm(x), []
        for layer, layer_state in zip(self.backbone.layers, state.layers, strict=True):
            x, layer_state = layer.step(x, layer_state)
            states.append(layer_state)
        return self.backbone.output_norm(x), self.State(embedding_state, tuple(states), state.head)
