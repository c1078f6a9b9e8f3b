"""FEATURES -> WAVE: the causal WaveNeXt decoder (Okamoto et al., "WaveNeXt", ASRU 2023; causal: arXiv 2509.16195).

Legend: B batch, T frames, S samples, D channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.config import DecoderConfig
from tokenizer.streaming import CausalConv1d, ConvState


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, LayerNorm, two pointwise layers with GELU, layer scale, residual (arXiv 2201.03545)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        dim = config.dim
        scale = 1 / config.num_layers if config.layerscale_init is None else config.layerscale_init
        self.dwconv = CausalConv1d(dim, dim, config.kernel_size, groups=dim, replicate=False)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, config.ffn_dim)
        self.pwconv2 = nn.Linear(config.ffn_dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), scale))

    def step(self, x: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        y, state = self.dwconv.step(x, state)
        return x + self.gamma * self.pwconv2(F.gelu(self.pwconv1(self.norm(y)))), state


class Backbone(nn.Module):
    """[B, T, D_in] -> [B, T, D]."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embedding = CausalConv1d(config.input_dim, config.dim, config.kernel_size, replicate=False)
        self.input_norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.layers = nn.ModuleList(ConvNeXtBlock(config) for _ in range(config.num_layers))
        self.output_norm = nn.LayerNorm(config.dim, eps=1e-6)


class Head(nn.Module):
    """One Linear from a frame's channels to its samples."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.dim, config.hop_length)


class Decoder(nn.Module):
    """[B, T, D] -> [B, T * hop_length], in [-1, 1]."""

    class State(NamedTuple):
        embedding: ConvState
        layers: tuple[ConvState, ...]

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        self.head = Head(config)

    def init_state(self, batch: int) -> State:
        layers = tuple(layer.dwconv.init_state(batch) for layer in self.backbone.layers)
        return self.State(self.backbone.embedding.init_state(batch), layers)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        x, embedding_state = self.backbone.embedding.step(x, state.embedding)
        x, states = self.backbone.input_norm(x), []
        for layer, layer_state in zip(self.backbone.layers, state.layers, strict=True):
            x, layer_state = layer.step(x, layer_state)
            states.append(layer_state)
        samples = self.head.proj(self.backbone.output_norm(x)).flatten(1)
        return samples.clamp(-1.0, 1.0), self.State(embedding_state, tuple(states))
