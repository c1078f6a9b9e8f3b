"""The configuration of a codec: one frozen dataclass a stage, in the published JSON layout.

A published `config.json` holds, for each of the five stages, `<stage>_name` and `<stage>_config`. Keys left out take
the published defaults given here; unknown keys raise. There are two families: in the streaming one every stage is
causal and the decoder is WaveNeXt; in the one for whole utterances no stage is and the decoder is Vocos. Two keys are
this project's additions, for small streaming models: `encoder_config.stem = "logmel"`, a causal log-mel front end in
place of the convolutional one, and `decoder_config.head = "istft"`, a causal inverse Fourier transform in place of the
linear head.
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizer.errors import InputError
from tokenizer.parsed import dataclass_from_dict

ENCODER_SAMPLE_RATE = 16000  # Hz; input rate of every published model
SIZES = {  # lowest and highest of each whole number, far above every known model: files may come from strangers
    **dict.fromkeys(("dim", "input_dim", "output_dim", "hidden_dims", "ffn_dim"), (1, 1 << 16)),
    **dict.fromkeys(("num_layers", "num_heads", "conv_pos_groups", "mel_bins", "focal_level"), (1, 1024)),
    **dict.fromkeys(("kernel_sizes", "kernel_size", "conv_pos", "focal_window"), (1, 4096)),
    **dict.fromkeys(("strides", "downscale_factors", "upscale_factors"), (1, 256)),
    **dict.fromkeys(("lookahead_size", "focal_factor"), (0, 1024)),
    **dict.fromkeys(("window_size", "last_window_size", "num_buckets", "max_distance"), (1, 1 << 16)),
    **dict.fromkeys(("hop_length", "n_fft", "mel_window", "mel_hop"), (1, 1 << 13)),
    "codebook_size": (2, 1 << 24),
}
LAYERS = 64  # most entries of a list of sizes


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
    max_cached_steps: int = 2048  # of the published code; accepted so that its files load, has no effect here
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
    head: str = "linear"  # "linear" as published, or "istft"
    n_fft: int = 640  # samples of the "istft" head's window

    def __post_init__(self) -> None:
        if self.head not in ("linear", "istft"):
            raise InputError(f'decoder_config: head {self.head!r} is unknown; use "linear" (published) or "istft"')
        if self.head == "istft" and self.n_fft % 2 + self.n_fft % self.hop_length:
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


@dataclass(frozen=True)
class CodecConfig:
    """All five stages. Raises InputError where stages do not fit together."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    compressor: CompressorConfig = field(default_factory=CompressorConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    decompressor: DecompressorConfig = field(default_factory=DecompressorConfig)
    decoder: DecoderConfig | VocosConfig = field(default_factory=DecoderConfig)

    def __post_init__(self) -> None:
        for left, right in (
            ("encoder.dim", "compressor.input_dim"),
            ("compressor.output_dim", "quantizer.bits"),
            ("quantizer.bits", "decompressor.input_dim"),
            ("decompressor.output_dim", "decoder.input_dim"),
            ("encoder.lookahead_size", "decompressor.lookahead_size"),
        ):
            if self._value(left) != self._value(right):
                raise InputError(f"codec config: {left} {self._value(left)} must equal {right} {self._value(right)}")
        self._check_family()
        down, up = math.prod(self.compressor.downscale_factors), math.prod(self.decompressor.upscale_factors)
        if down != up:
            raise InputError(
                f"codec config: the product of downscale_factors {down} must equal that of upscale_factors {up}"
            )
        if self.causal and self.encoder.chunk_frames % down:
            raise InputError(
                f"codec config: a chunk of {self.encoder.chunk_frames} frames must hold a whole number of tokens, "
                f"but downscale_factors multiply to {down}"
            )

    @property
    def causal(self) -> bool:
        """Whether the codec streams; if not, it takes whole utterances."""
        return self.encoder.causal

    @property
    def sample_rate_out(self) -> int:
        """Hz."""
        return ENCODER_SAMPLE_RATE * self.decoder.hop_length // self.encoder.hop_samples

    def _check_family(self) -> None:
        stages = ("encoder", "compressor", "decompressor", "decoder")
        if len({getattr(self, stage).causal for stage in stages}) > 1:
            found = ", ".join(f"{stage} {str(getattr(self, stage).causal).lower()}" for stage in stages)
            raise InputError(
                f'codec config: "causal" differs between stages ({found}); a codec is causal in all of them (it '
                "streams) or in none (it takes whole utterances)"
            )
        if self.causal != isinstance(self.decoder, DecoderConfig):
            raise InputError(
                f'codec config: "causal" is {str(self.causal).lower()} and decoder_name '
                f"{_stage_name('decoder', self.decoder)}; streaming codecs decode with WaveNeXt, those for whole "
                "utterances with Vocos"
            )
        if not self.causal and self.encoder.stem != "conv":
            raise InputError(
                f'encoder_config: stem {self.encoder.stem!r} is for streaming codecs; with "causal": false use "conv"'
            )

    def _value(self, dotted: str) -> Any:
        stage, key = dotted.split(".")
        return getattr(getattr(self, stage), key)

    @classmethod
    def from_dict(cls, raw: dict[str, Any], source: str = "codec config") -> CodecConfig:
        """Read the published layout.

        Args:
            raw: the parsed JSON or YAML.
            source: what to call it in error messages, usually its path.

        Raises:
            InputError: for unknown keys, unknown stage names, or values that do not fit together.
        """
        if not isinstance(raw, dict):
            raise InputError(f"{source}: expected a mapping of stage names and configs, found {type(raw).__name__}")
        known = {f"{stage}_name" for stage in STAGE_CLASSES} | {f"{stage}_config" for stage in STAGE_CLASSES}
        if unknown := sorted(set(raw) - known):
            raise InputError(f"{source}: unknown key {unknown[0]!r}; known keys are {', '.join(sorted(known))}")
        stages = {}
        for stage, classes in STAGE_CLASSES.items():
            name = raw.get(f"{stage}_name", next(iter(classes)))
            if not isinstance(name, str) or name not in classes:
                raise InputError(
                    f"{source}: {stage}_name {name!r} is not supported here; expected {' or '.join(map(repr, classes))}"
                )
            section = f"{source}: {stage}_config"
            values = raw.get(f"{stage}_config")
            if name == "Vocos" and isinstance(values, dict):
                values = _without_old_keys(values)
            _check_sizes(values, section)
            stages[stage] = dataclass_from_dict(classes[name], {} if values is None else values, section)
        try:
            return cls(**stages)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None

    @classmethod
    def from_file(cls, path: str | Path) -> CodecConfig:
        """Read a published `config.json`. Raises InputError when it is no JSON or does not fit."""
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not a JSON file ({error}); expected a codec's config.json") from None
        return cls.from_dict(raw, str(path))

    @property
    def parameters_at_least(self) -> int:
        """A lower bound of the number of weights, from the matrices that every configuration has."""
        encoder, decoder = self.encoder, self.decoder
        focal = (*self.compressor.hidden_dims, *self.decompressor.hidden_dims)
        return (
            encoder.num_layers * (4 * encoder.dim**2 + 2 * encoder.dim * encoder.ffn_dim)
            + decoder.num_layers * 2 * decoder.dim * decoder.ffn_dim
            + sum(width**2 for width in focal)
        )

    def to_dict(self) -> dict[str, Any]:
        """The published layout, with every key spelled out."""
        out: dict[str, Any] = {}
        for stage in STAGE_CLASSES:
            config = getattr(self, stage)
            out[f"{stage}_name"] = _stage_name(stage, config)
            out[f"{stage}_config"] = {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in dataclasses.asdict(config).items()
            }
        return out


STAGE_CLASSES: dict[str, dict[str, Any]] = {  # of each stage, by published name; the first is the default
    "encoder": {"WavLM": EncoderConfig},
    "compressor": {"FocalEncoder": CompressorConfig},
    "quantizer": {"BinarySphericalQuantizer": QuantizerConfig},
    "decompressor": {"FocalDecoder": DecompressorConfig},
    "decoder": {"WaveNeXt": DecoderConfig, "Vocos": VocosConfig},
}


def _check_sizes(values: Any, section: str) -> None:
    """Raise InputError for a size out of range, before anything is computed with it."""
    for key, value in values.items() if isinstance(values, dict) else ():
        least, most = SIZES.get(key, (None, None))
        several = value if isinstance(value, list) else [value]
        if least is None or most is None:
            continue
        if len(several) > LAYERS:
            raise InputError(f"{section}: {key} has {len(several)} entries; expected {LAYERS} at most")
        for one in several:
            if type(one) is int and not least <= one <= most:
                raise InputError(f"{section}: {key} is {reprlib.repr(one)}; expected {least} to {most}")


def _stage_name(stage: str, config: Any) -> str:
    return next(name for name, kind in STAGE_CLASSES[stage].items() if isinstance(config, kind))


def _without_old_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Early published files have `input_channels` for `input_dim`, and a `padding` that follows from the kernel."""
    named = {"input_dim" if key == "input_channels" else key: value for key, value in values.items()}
    return {key: value for key, value in named.items() if key != "padding"}


def _check_same_length(section: str, config: Any, *names: str) -> None:
    lengths = [len(getattr(config, name)) for name in names]
    if len(set(lengths)) > 1:
        found = ", ".join(f"{name} ({length})" for name, length in zip(names, lengths, strict=True))
        raise InputError(f"{section}: {found}: expected one entry for each layer, so the same number")
