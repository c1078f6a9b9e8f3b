"""WAVE -> FEATURES: the WavLM encoder, causal or with the whole utterance in view, and a log-mel stem for small models.

Legend: B batch, S samples, T frames (50 Hz), D channels.

WavLM: arXiv 2110.13900. Causal version: arXiv 2509.16195 (every convolution sees the past only, with the first frame
replicated to the left; attention is chunked). Module names follow the published state dict and are the same in both
forms, so a causal student can start from a full-context teacher's weights. A causal encoder has `step`, for streams; a
full-context one has `forward`, for whole utterances.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.network.attention import FullAttention, GatedAttention, KVState, RelativeBias, chunk_mask
from tokenizer.network.mel import mel_filterbank
from tokenizer.network.padding import SameConv1d, blank
from tokenizer.network.stage_configs import ENCODER_SAMPLE_RATE, EncoderConfig
from tokenizer.network.streaming import CausalConv1d, ConvState, FeedForward

PIECE_FRAMES = 512  # of a whole utterance that the convolutional stem works on at once: bounds memory


class ConvBlock(nn.Module):
    """Strided convolution, LayerNorm over channels, GELU."""

    def __init__(self, input_dim: int, output_dim: int, kernel_size: int, stride: int, causal: bool) -> None:
        super().__init__()
        conv = CausalConv1d if causal else nn.Conv1d
        self.conv = conv(input_dim, output_dim, kernel_size, stride, bias=False)
        self.norm = nn.LayerNorm(output_dim)

    def step(self, x: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        x, state = self.conv.step(x, state)
        return F.gelu(self.norm(x)), state

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C_in] -> [B, (T - kernel) // stride + 1, C_out], without padding."""
        return F.gelu(self.norm(self.conv(x.transpose(1, 2)).transpose(1, 2)))


class ConvStem(nn.Module):
    """The published feature extractor: [B, S] -> [B, T, 512], where T is S / 320 for streams."""

    class State(NamedTuple):
        layers: tuple[ConvState, ...]

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        dims = (1, *config.hidden_dims)
        self.layers = nn.ModuleList(
            ConvBlock(dims[i], dims[i + 1], config.kernel_sizes[i], config.strides[i], config.causal)
            for i in range(len(dims) - 1)
        )
        self.hop, self.receptive_field = config.hop_samples, config.receptive_field
        self.shapes = tuple(zip(config.kernel_sizes, config.strides, strict=True))

    def init_state(self, batch: int) -> State:
        return self.State(tuple(layer.conv.init_state(batch) for layer in self.layers))

    def step(self, wave: Tensor, state: State) -> tuple[Tensor, State]:
        x, states = wave[..., None], []
        for layer, layer_state in zip(self.layers, state.layers, strict=True):
            x, layer_state = layer.step(x, layer_state)
            states.append(layer_state)
        return x, self.State(tuple(states))

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Whole utterances: [B, S] and lengths [B] in samples -> [B, T, 512] and lengths [B] in frames.

        A frame needs its whole receptive field, so n samples make (n - 400) // 320 + 1 frames, and at least one: each
        layer of a row too short for its kernel gets zeros after the row's end, as published.
        """
        frames = ((lengths - self.receptive_field) // self.hop + 1).clamp(min=1)
        total, pieces = int(frames.max()), []
        some_short = bool((lengths < self.receptive_field).any())
        for start in range(0, total, PIECE_FRAMES):
            begin, last = start * self.hop, min(start + PIECE_FRAMES, total) - 1
            x, counts = wave[:, begin : last * self.hop + self.receptive_field, None], lengths - begin
            for layer, (kernel, stride) in zip(self.layers, self.shapes, strict=True):
                if some_short:  # elsewhere what lies beyond a row's end is in none of its frames
                    x = F.pad(blank(x, counts), (0, 0, 0, max(0, kernel - x.shape[1])))
                    counts = ((counts - kernel) // stride + 1).clamp(min=1)
                x = layer(x)
            pieces.append(x)
        return torch.cat(pieces, dim=1), frames


class LogMelStem(nn.Module):
    """[B, S] -> [B, S / 320, mel_bins * sub-frames]: log-mel energies of windows that end with their sub-frame.

    The spectrum is a product with fixed cosine and sine tables, so a step is two matrix products at any length.
    """

    class State(NamedTuple):
        """context: [B, mel_window - mel_hop], the last samples; zeros (silence) before a stream begins."""

        context: Tensor

    floor = 1e-6  # power below which a mel band counts as silence

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.window, self.hop = config.mel_window, config.mel_hop
        self.sub_frames = config.hop_samples // config.mel_hop
        n = torch.arange(self.window, dtype=torch.float64)
        hann = 0.5 - 0.5 * torch.cos(2 * torch.pi * (n + 0.5) / self.window)
        frequency = torch.arange(self.window // 2 + 1, dtype=torch.float64)
        angle = 2 * torch.pi * frequency[None] * n[:, None] / self.window
        scale = hann[:, None] * (2 / hann.sum())
        # Fixed tables, rebuilt from the configuration: not part of the weights.
        self.register_buffer("basis", torch.cat([angle.cos() * scale, angle.sin() * scale], 1), persistent=False)
        mels = mel_filterbank(ENCODER_SAMPLE_RATE, self.window, config.mel_bins)
        self.register_buffer("mels", mels, persistent=False)
        self.float()

    def init_state(self, batch: int) -> State:
        basis: Tensor = self.get_buffer("basis")
        return self.State(basis.new_zeros(batch, self.window - self.hop))

    def step(self, wave: Tensor, state: State) -> tuple[Tensor, State]:
        with torch.autocast(wave.device.type, enabled=False):  # a spectrum spans more decades than bfloat16 resolves
            padded = torch.cat([state.context, wave], dim=1)
            spectrum = padded.unfold(1, self.window, self.hop) @ self.get_buffer("basis")
            real, imaginary = spectrum.chunk(2, dim=-1)
            power = real.square() + imaginary.square()
            logmel = torch.log(power @ self.get_buffer("mels") + self.floor)
        return (
            logmel.reshape(wave.shape[0], -1, self.sub_frames * logmel.shape[-1]),
            self.State(padded[:, padded.shape[1] - (self.window - self.hop) :]),
        )

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Whole utterances: [B, S] of whole frames and lengths [B] in samples -> features and lengths [B] in frames."""
        features, _ = self.step(wave, self.init_state(len(wave)))
        frame = self.hop * self.sub_frames
        return features, (lengths + frame - 1) // frame


class TransformerLayer(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        past = config.window_size - config.chunk_frames
        self.attention_norm = nn.LayerNorm(config.dim)
        self.attention = (
            GatedAttention(config.dim, config.num_heads, past, config.dropout)
            if config.causal
            else FullAttention(config.dim, config.num_heads, config.dropout)
        )
        self.feed_forward_norm = nn.LayerNorm(config.dim)
        self.feed_forward = FeedForward(config.dim, config.ffn_dim, config.dropout)

    def step(self, x: Tensor, bias: Tensor, mask: Tensor, state: KVState) -> tuple[Tensor, KVState]:
        attended, state = self.attention.step(self.attention_norm(x), bias, mask, state)
        x = x + attended
        return x + self.feed_forward(self.feed_forward_norm(x)), state

    def forward(self, x: Tensor, relative: RelativeBias, lengths: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), relative, lengths)
        return x + self.feed_forward(self.feed_forward_norm(x))


class PositionalConv(nn.Module):
    """A wide grouped convolution whose output, after GELU, is added as positional embedding."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        dim, kernel, groups = config.dim, config.conv_pos, config.conv_pos_groups
        self.conv = (
            CausalConv1d(dim, dim, kernel, groups=groups)
            if config.causal
            else SameConv1d(dim, dim, kernel, groups=groups, left=kernel // 2)
        )


class TransformerEncoder(nn.Module):
    """[B, T, D] -> [B, T, D], streaming in whole chunks or all at once; no norm at the end, as published."""

    class State(NamedTuple):
        """position: [B] int64, frames seen so far, counted up to the cache's length (beyond it nothing changes)."""

        position: Tensor
        positional_embedding: ConvState
        layers: tuple[KVState, ...]

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.chunk, self.window = config.chunk_frames, config.window_size
        self.past = self.window - self.chunk
        self.positional_embedding = PositionalConv(config)
        self.relative_embedding = RelativeBias(config.num_buckets, config.num_heads, config.max_distance)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))

    def init_state(self, batch: int) -> State:
        positional = self.positional_embedding.conv.init_state(batch)
        position = torch.zeros(batch, dtype=torch.int64, device=positional.context.device)
        return self.State(position, positional, tuple(layer.attention.init_state(batch) for layer in self.layers))

    def step(self, x: Tensor, state: State) -> tuple[list[Tensor], State]:
        """The output of every layer, [B, T, D] each, and the next state."""
        frames = x.shape[1]
        bias = self.relative_embedding(frames, self.past)
        seen = chunk_mask(frames, self.past, self.chunk, self.window, state.position)
        mask = torch.zeros_like(seen, dtype=bias.dtype).masked_fill_(~seen, -torch.inf)
        positional, positional_state = self.positional_embedding.conv.step(x, state.positional_embedding)
        x = x + F.gelu(positional)
        outputs, states = [], []
        for layer, layer_state in zip(self.layers, state.layers, strict=True):
            x, layer_state = layer.step(x, bias, mask, layer_state)
            outputs.append(x)
            states.append(layer_state)
        position = (state.position + frames).clamp(max=self.past)
        return outputs, self.State(position, positional_state, tuple(states))

    def forward(self, x: Tensor, lengths: Tensor) -> list[Tensor]:
        """The output of every layer, [B, T, D] each."""
        x = x + F.gelu(self.positional_embedding.conv(x, lengths))
        outputs = []
        for layer in self.layers:
            x = layer(x, self.relative_embedding, lengths)
            outputs.append(x)
        return outputs


class Encoder(nn.Module):
    """[B, S] at 16 kHz -> [B, T, D] at 50 Hz."""

    class State(NamedTuple):
        stem: ConvStem.State | LogMelStem.State
        encoder: TransformerEncoder.State

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config, self.dim = config, config.dim
        self.feature_extractor = ConvStem(config) if config.stem == "conv" else LogMelStem(config)
        self.norm = nn.LayerNorm(config.stem_dim)
        self.feature_proj = nn.Linear(config.stem_dim, config.dim)
        self.encoder = TransformerEncoder(config)

    def init_state(self, batch: int) -> State:
        return self.State(self.feature_extractor.init_state(batch), self.encoder.init_state(batch))

    def _project(self, x: Tensor) -> Tensor:
        """What the stem gives, to D channels; the stem may be in a wider type than what follows."""
        return self.feature_proj(self.norm(x.to(self.norm.weight.dtype)))

    def step(self, wave: Tensor, state: State) -> tuple[Tensor, State]:
        """The next features of a stream: [B, S] of whole chunks -> [B, S / 320, D]."""
        outputs, state = self.step_layers(wave, state)
        return outputs[-1], state

    def step_layers(self, wave: Tensor, state: State) -> tuple[list[Tensor], State]:
        """As `step`, but the output of every layer."""
        x, stem_state = self.feature_extractor.step(wave, state.stem)  # type: ignore[arg-type]
        outputs, encoder_state = self.encoder.step(self._project(x), state.encoder)
        return outputs, self.State(stem_state, encoder_state)

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features of whole utterances.

        Args:
            wave: [B, S]; samples beyond a row's length are ignored.
            lengths: int64 [B], samples of each row.

        Returns:
            [B, T, D], undefined beyond a row's length, and the lengths in frames, int64 [B].
        """
        outputs, frames = self.forward_layers(wave, lengths)
        return outputs[-1], frames

    def forward_layers(self, wave: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        """As `forward`, but the output of every layer."""
        x, frames = self.projected(wave, lengths)
        return self.encoder(x, frames), frames

    def projected(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the Transformer gets, positional embedding aside: [B, T, D], and the lengths in frames, int64 [B]."""
        x, frames = self.feature_extractor(wave, lengths)
        return self._project(x), frames
