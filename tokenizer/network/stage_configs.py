"""The settings of each stage of a codec, one frozen dataclass a stage. `tokenizer.config` reads and writes them.

Fields and defaults are the published ones. Two keys are this project's additions, for small streaming models:
`EncoderConfig.stem` "logmel", a causal log-mel front end in place of the convolutional one, and `DecoderConfig.head`
"istft" or "comb", a causal inverse Fourier transform, without or with a comb filter at the pitch, for the linear head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tokenizer.errors import InputError

ENCODER_SAMPLE_RATE = 16000  # Hz; input rate of every published model


@dataclass(frozen=True)
class EncoderConfig:
    """WavLM (arXiv 2110.13900), first `num_layers` layers; sizes in channels, windows in frames of 20 ms."""

    hidden_dims: tuple[int, ...] = (512,) * 7
    kernel_sizes: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    num_layers: int = 6
    dim: int = 1024
    ffn_dim: int = 4096
    num_heads: int = 16
    num_buckets: int = 320
    max_distance: int = 800
    max_cached_steps: int = 2048  # of the published code: accepted so that its files load, without effect here
    dropout: float = 0.0
    conv_pos: int = 128
    conv_pos_groups: int = 16
    causal: bool = False
    window_size: int = 512
    lookahead_size: int = 3
    use_flex_attention: bool = False  # likewise
    stem: str = "conv"  # "conv" as published, or "logmel"
    mel_bins: int = 80
    mel_window: int = 640  # samples
    mel_hop: int = 160  # samples; a frame holds hop_samples / mel_hop mel vectors side by side

    def __post_init__(self) -> None:
        _check_same_length("encoder_config", self, "hidden_dims", "kernel_sizes", "strides")
        if self.dim % self.num_heads:
            raise InputError(f"encoder_config: dim {self.dim} must be a multiple of num_heads {self.num_heads}")
        if self.dim % self.conv_pos_groups:
            raise InputError(
                f"encoder_config: dim {self.dim} must be a multiple of conv_pos_groups {self.conv_pos_groups}"
            )
        if self.window_size % self.chunk_frames:
            raise InputError(
                f"encoder_config: window_size {self.window_size} must be a whole number of chunks of "
                f"lookahead_size + 1 = {self.chunk_frames} frames"
            )
        if self.stem not in ("conv", "logmel"):
            raise InputError(f'encoder_config: stem {self.stem!r} is unknown; use "conv" (published) or "logmel"')
        if self.stem == "logmel" and self.hop_samples % self.mel_hop:
            raise InputError(
                f"encoder_config: mel_hop {self.mel_hop} must divide the frame of prod(strides) = {self.hop_samples}"
            )

    @property
    def hop_samples(self) -> int:
        """Input samples per frame."""
        return math.prod(self.strides)

    @property
    def receptive_field(self) -> int:
        """Input samples that a frame of the convolutional stem sees (400 as published)."""
        samples = 1
        for kernel, stride in zip(reversed(self.kernel_sizes), reversed(self.strides), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    @property
    def chunk_frames(self) -> int:
        """Frames of a chunk, the unit of streaming; within it, frames attend to one another."""
        return self.lookahead_size + 1

    @property
    def stem_dim(self) -> int:
        """Channels that leave the stem."""
        return self.hidden_dims[-1] if self.stem == "conv" else self.mel_bins * (self.hop_samples // self.mel_hop)


@dataclass(frozen=True)
class FocalConfig:
    """What compressor and decompressor share: focal modulation (arXiv 2203.11926), causal as in arXiv 2509.16195."""

    input_dim: int
    output_dim: int
    hidden_dims: tuple[int, ...] = (1024, 1024, 1024)
    focal_window: int = 14
    focal_level: int = 2
    focal_factor: int = 4
    dropout: float = 0.0
    use_post_norm: bool = False
    use_layerscale: bool = False
    layerscale_init: float = 1e-4
    tanhscale_init: float = 0.5
    normalize_modulator: bool = False
    causal: bool = False
    window_size: int = 512

    @property
    def focal_kernels(self) -> list[int]:
        """Kernel of each level's depthwise convolution, in frames."""
        return [self.focal_window + self.focal_factor * level for level in range(self.focal_level)]


@dataclass(frozen=True)
class CompressorConfig(FocalConfig):
    """Features to latents."""

    input_dim: int = 1024
    output_dim: int = 13
    downscale_factors: tuple[int, ...] = (1, 1, 1)

    def __post_init__(self) -> None:
        _check_same_length("compressor_config", self, "hidden_dims", "downscale_factors")


@dataclass(frozen=True)
class QuantizerConfig:
    """Binary spherical quantization (arXiv 2406.07548)."""

    codebook_size: int = 8192

    def __post_init__(self) -> None:
        if self.codebook_size < 2 or self.codebook_size & (self.codebook_size - 1):
            raise InputError(f"quantizer_config: codebook_size {self.codebook_size} must be a power of two")

    @property
    def bits(self) -> int:
        return self.codebook_size.bit_length() - 1


@dataclass(frozen=True)
class DecompressorConfig(FocalConfig):
    """Codes to features; the refiner mixes chunks of `lookahead_size` + 1 frames."""

    input_dim: int = 13
    output_dim: int = 1024
    upscale_factors: tuple[int, ...] = (1, 1, 1)
    last_window_size: int = 512
    lookahead_size: int = 3

    def __post_init__(self) -> None:
        _check_same_length("decompressor_config", self, "hidden_dims", "upscale_factors")


@dataclass(frozen=True)
class DecoderConfig:
    """WaveNeXt (Okamoto et al., ASRU 2023): features to `hop_length` output samples a frame."""

    input_dim: int = 1024
    num_layers: int = 8
    dim: int = 1024
    ffn_dim: int = 2048
    kernel_size: int = 7
    layerscale_init: float | None = None  # None: 1 / num_layers
    hop_length: int = 480
    causal: bool = False
    head: str = "linear"  # "linear" as published, or "istft", or "comb", which filters voices at their pitch too
    n_fft: int = 640  # samples of the window of the heads other than "linear"

    def __post_init__(self) -> None:
        if self.head not in ("linear", "istft", "comb"):
            raise InputError(
                f'decoder_config: head {self.head!r} is unknown; use "linear" (published), "istft" or "comb"'
            )
        if self.head != "linear" and self.n_fft % 2 + self.n_fft % self.hop_length:
            raise InputError(
                f"decoder_config: n_fft {self.n_fft} must be even and a multiple of hop_length {self.hop_length}"
            )


@dataclass(frozen=True)
class VocosConfig:
    """Vocos (arXiv 2306.00814), of the family for whole utterances: features to `hop_length` output samples a frame."""

    input_dim: int = 1024
    num_layers: int = 8
    dim: int = 512
    ffn_dim: int = 1536
    kernel_size: int = 7
    layerscale_init: float | None = None  # None: 1 / num_layers
    n_fft: int = 1024  # samples of the inverse transform and its window
    hop_length: int = 320
    causal: bool = False

    def __post_init__(self) -> None:
        if self.n_fft % 2 or self.hop_length % 2 or self.n_fft <= self.hop_length:
            raise InputError(
                f"decoder_config: n_fft {self.n_fft} and hop_length {self.hop_length} must be even, n_fft larger"
            )


def _check_same_length(section: str, config: Any, *names: str) -> None:
    lengths = [len(getattr(config, name)) for name in names]
    if len(set(lengths)) > 1:
        found = ", ".join(f"{name} ({length})" for name, length in zip(names, lengths, strict=True))
        raise InputError(f"{section}: {found}: expected one entry for each layer, so the same number")
