"""FEATURES <-> LATENTS: focal modulation, and the compressor, decompressor and refiner built of it.

Legend: B batch, T frames, D channels.

Focal modulation: arXiv 2203.11926. FocalCodec, for whole utterances: arXiv 2502.04465. Causal form, with DynamicTanh
(arXiv 2503.10622) in place of LayerNorm and a wide depthwise convolution in place of global pooling: arXiv 2509.16195.
The causal form has `step`, for streams; the other has `forward`, where `lengths`, int64 [B], says how much of a row
counts.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.network.padding import FrameDownscale, SameConv1d, blank
from tokenizer.network.stage_configs import CompressorConfig, DecompressorConfig, FocalConfig
from tokenizer.network.streaming import CausalConv1d, ConvState, FeedForward, FrameUpscale, PointwiseConv


class DynamicTanh(nn.Module):
    """tanh(alpha * x) with one learned scalar."""

    def __init__(self, init: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), init))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.alpha * x)


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha with a learned alpha per channel (arXiv 2006.08195)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha.T
        return x + torch.sin(alpha * x).square() / (alpha + 1e-9)


def focal_norm(dim: int, config: FocalConfig) -> nn.Module:
    """The norm of a family: DynamicTanh in the causal one, LayerNorm in the other."""
    return DynamicTanh(config.tanhscale_init) if config.causal else nn.LayerNorm(dim)


class FocalModulation(nn.Module):
    """Each frame's query times a gated sum of its past over growing context windows."""

    class State(NamedTuple):
        levels: tuple[ConvState, ...]

    def __init__(self, dim: int, config: FocalConfig) -> None:
        super().__init__()
        self.dim, self.ranges = dim, config.focal_level + 1
        self.in_proj = nn.Linear(dim, 2 * dim + self.ranges)
        self.layers = self._context_layers(dim, config)
        self.context_proj = PointwiseConv(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        self.norm = focal_norm(dim, config) if config.use_post_norm else nn.Identity()
        self.context_scale = 1 / self.ranges if config.normalize_modulator else 1.0

    def _context_layers(self, dim: int, config: FocalConfig) -> nn.ModuleList:
        kernels = [*config.focal_kernels, config.window_size]  # the widest stands where the other family pools
        return nn.ModuleList(nn.Sequential(CausalConv1d(dim, dim, k, groups=dim), nn.GELU()) for k in kernels)

    def init_state(self, batch: int) -> State:
        return self.State(tuple(layer[0].init_state(batch) for layer in self.layers))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        query, context, gates = self.in_proj(x).split([self.dim, self.dim, self.ranges], dim=-1)
        gathered, states = torch.zeros_like(context), []
        for level, (layer, level_state) in enumerate(zip(self.layers, state.levels, strict=True)):
            context, level_state = layer[0].step(context, level_state)
            context = layer[1](context)
            gathered = gathered + context * gates[..., level : level + 1]
            states.append(level_state)
        return self._modulate(query, gathered), self.State(tuple(states))

    def _modulate(self, query: Tensor, gathered: Tensor) -> Tensor:
        return self.out_proj(self.norm(query * self.context_proj(gathered * self.context_scale)))


class PooledModulation(FocalModulation):
    """The non-causal form: both sides in view, and the mean over the utterance as the widest context."""

    def _context_layers(self, dim: int, config: FocalConfig) -> nn.ModuleList:
        kernels = config.focal_kernels
        return nn.ModuleList(nn.Sequential(SameConv1d(dim, dim, k, groups=dim), nn.GELU()) for k in kernels)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        query, context, gates = self.in_proj(x).split([self.dim, self.dim, self.ranges], dim=-1)
        gathered = torch.zeros_like(context)
        for level, layer in enumerate(self.layers):
            context = layer[1](layer[0](context, lengths))
            gathered = gathered + context * gates[..., level : level + 1]
        mean = blank(context, lengths).sum(1, keepdim=True) / lengths[:, None, None]
        return self._modulate(query, gathered + F.gelu(mean) * gates[..., -1:])


class FocalBlock(nn.Module):
    """Focal modulation and feed-forward, each with residual and norm."""

    def __init__(self, dim: int, config: FocalConfig) -> None:
        super().__init__()
        self.post_norm = config.use_post_norm
        self.modulation_norm = focal_norm(dim, config)
        self.modulation = FocalModulation(dim, config) if config.causal else PooledModulation(dim, config)
        self.feed_forward_norm = focal_norm(dim, config)
        self.feed_forward = FeedForward(dim, 4 * dim, config.dropout)
        if config.use_layerscale:
            self.modulation_gamma = nn.Parameter(torch.full((dim,), config.layerscale_init))
            self.feed_forward_gamma = nn.Parameter(torch.full((dim,), config.layerscale_init))
        else:
            self.modulation_gamma = self.feed_forward_gamma = 1.0  # type: ignore[assignment]

    def init_state(self, batch: int) -> FocalModulation.State:
        return self.modulation.init_state(batch)

    def step(self, x: Tensor, state: FocalModulation.State) -> tuple[Tensor, FocalModulation.State]:
        modulated, state = self.modulation.step(self._before(x), state)
        return self._after(x, modulated), state

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self._after(x, self.modulation(self._before(x), lengths))

    def _before(self, x: Tensor) -> Tensor:
        """What the modulation gets."""
        return x if self.post_norm else self.modulation_norm(x)

    def _after(self, x: Tensor, modulated: Tensor) -> Tensor:
        """All that follows the modulation."""
        if self.post_norm:
            x = x + self.modulation_gamma * self.modulation_norm(modulated)
            return x + self.feed_forward_gamma * self.feed_forward_norm(self.feed_forward(x))
        x = x + self.modulation_gamma * modulated
        return x + self.feed_forward_gamma * self.feed_forward(self.feed_forward_norm(x))


class Downscale(nn.Module):
    """A convolution with kernel = stride = `factor`, then Snake."""

    def __init__(self, input_dim: int, output_dim: int, factor: int, causal: bool) -> None:
        super().__init__()
        self.downscale = (
            CausalConv1d(input_dim, output_dim, factor, stride=factor)
            if causal
            else FrameDownscale(input_dim, output_dim, factor)
        )
        self.activation = Snake(output_dim)


class FocalDownscale(nn.Module):
    """[B, T, D_in] -> [B, T / factor, D_out]: downscale, then a focal block."""

    class State(NamedTuple):
        downscale: ConvState
        focal_block: FocalModulation.State

    def __init__(self, input_dim: int, output_dim: int, factor: int, config: FocalConfig) -> None:
        super().__init__()
        self.downscale = Downscale(input_dim, output_dim, factor, config.causal)
        self.focal_block = FocalBlock(output_dim, config)

    def init_state(self, batch: int) -> State:
        return self.State(self.downscale.downscale.init_state(batch), self.focal_block.init_state(batch))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        x, conv_state = self.downscale.downscale.step(x, state.downscale)
        x, block_state = self.focal_block.step(self.downscale.activation(x), state.focal_block)
        return x, self.State(conv_state, block_state)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x, lengths = self.downscale.downscale(x, lengths)
        return self.focal_block(self.downscale.activation(x), lengths), lengths


class Upscale(nn.Module):
    """Snake, then a transposed convolution with kernel = stride = `factor`; it needs no memory."""

    def __init__(self, input_dim: int, output_dim: int, factor: int) -> None:
        super().__init__()
        self.activation = Snake(input_dim)
        self.upscale = FrameUpscale(input_dim, output_dim, factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.upscale(self.activation(x))


class FocalUpscale(nn.Module):
    """[B, T, D_in] -> [B, T * factor, D_out]: a focal block, then upscale."""

    def __init__(self, input_dim: int, output_dim: int, factor: int, config: FocalConfig) -> None:
        super().__init__()
        self.factor = factor
        self.focal_block = FocalBlock(input_dim, config)
        self.upscale = Upscale(input_dim, output_dim, factor)

    def init_state(self, batch: int) -> FocalModulation.State:
        return self.focal_block.init_state(batch)

    def step(self, x: Tensor, state: FocalModulation.State) -> tuple[Tensor, FocalModulation.State]:
        x, state = self.focal_block.step(x, state)
        return self.upscale(x), state

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.upscale(self.focal_block(x, lengths)), lengths * self.factor


class Compressor(nn.Module):
    """Features [B, T, D] -> unnormalised latents [B, T / downscale, bits]."""

    class State(NamedTuple):
        layers: tuple[FocalDownscale.State, ...]

    def __init__(self, config: CompressorConfig) -> None:
        super().__init__()
        dims = (config.input_dim, *config.hidden_dims)
        self.layers = nn.ModuleList(
            FocalDownscale(dims[i], dims[i + 1], factor, config) for i, factor in enumerate(config.downscale_factors)
        )
        self.out_proj = nn.Linear(dims[-1], config.output_dim)

    def init_state(self, batch: int) -> State:
        return self.State(tuple(layer.init_state(batch) for layer in self.layers))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        states = []
        for layer, layer_state in zip(self.layers, state.layers, strict=True):
            x, layer_state = layer.step(x, layer_state)
            states.append(layer_state)
        return self.out_proj(x), self.State(tuple(states))

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Whole utterances of `lengths` frames: unnormalised latents, and the lengths in tokens, rounded up."""
        for layer in self.layers:
            x, lengths = layer(x, lengths)
        return self.out_proj(x), lengths


class Refiner(nn.Module):
    """Mixes the frames of a chunk, without added latency: flatten, Linear, GELU, Linear, residual."""

    def __init__(self, chunk: int, dim: int) -> None:
        super().__init__()
        self.chunk = chunk
        self.in_proj = nn.Linear(chunk * dim, chunk * dim)
        self.out_proj = nn.Linear(chunk * dim, chunk * dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]; T is a whole number of chunks."""
        flat = x.reshape(x.shape[0], x.shape[1] // self.chunk, -1)
        return x + self.out_proj(F.gelu(self.in_proj(flat))).reshape(x.shape)


class Decompressor(nn.Module):
    """Codes [B, T', bits] -> features [B, T' * upscale, D]; streams go in whole chunks, and only they are refined."""

    class State(NamedTuple):
        layers: tuple[FocalModulation.State, ...]

    def __init__(self, config: DecompressorConfig) -> None:
        super().__init__()
        self.upscale = 1
        for factor in config.upscale_factors:
            self.upscale *= factor
        dims = (*config.hidden_dims, config.output_dim)
        self.in_proj = nn.Linear(config.input_dim, dims[0])
        last = dataclasses.replace(config, window_size=config.last_window_size)
        configs = [config] * (len(dims) - 2) + [last]
        self.layers = nn.ModuleList(
            FocalUpscale(dims[i], dims[i + 1], factor, configs[i]) for i, factor in enumerate(config.upscale_factors)
        )
        refined = config.causal and config.lookahead_size > 0  # a chunk of one frame has nothing to mix
        self.refiner = Refiner(config.lookahead_size + 1, config.output_dim) if refined else nn.Identity()

    def init_state(self, batch: int) -> State:
        return self.State(tuple(layer.init_state(batch) for layer in self.layers))

    def step(self, codes: Tensor, present: Tensor, state: State) -> tuple[Tensor, State]:
        """Features of the next tokens.

        Args:
            codes: [B, T', bits].
            present: [B, T'] bool; False marks filling after a stream's last token, which the refiner must not see.
        """
        x, states = self.in_proj(codes), []
        for layer, layer_state in zip(self.layers, state.layers, strict=True):
            x, layer_state = layer.step(x, layer_state)
            states.append(layer_state)
        kept = present.repeat_interleave(self.upscale, dim=1)
        return self.refiner(x * kept[..., None]), self.State(tuple(states))

    def forward(self, codes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Whole utterances of `lengths` tokens: features, and the lengths in frames."""
        x = self.in_proj(codes)
        for layer in self.layers:
            x, lengths = layer(x, lengths)
        return x, lengths
