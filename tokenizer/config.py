"""The configuration of a codec: one frozen dataclass a stage, in the published JSON layout.

A published `config.json` holds, for each of the five stages, `<stage>_name` and `<stage>_config`. Keys left out take
the published defaults given here; unknown keys raise. Two keys are this project's additions, for small models:
`encoder_config.stem = "logmel"`, a causal log-mel front end in place of the convolutional one, and
`decoder_config.head = "istft"`, a causal inverse Fourier transform in place of the linear head.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tokenizer.errors import InputError

STAGE_NAMES = {
    "encoder": "WavLM",
    "compressor": "FocalEncoder",
    "quantizer": "BinarySphericalQuantizer",
    "decompressor": "FocalDecoder",
    "decoder": "WaveNeXt",
}
ENCODER_SAMPLE_RATE = 16000  # Hz; every published model hears 16 kHz


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
    max_cached_steps: int = 2048  # a cache size of the published code; read so that its files load, without effect here
    dropout: float = 0.0
    conv_pos: int = 128
    conv_pos_groups: int = 16
    causal: bool = False
    window_size: int = 512
    lookahead_size: int = 3
    use_flex_attention: bool = False  # likewise read and without effect
    stem: str = "conv"  # "conv" as published, or "logmel"
    mel_bins: int = 80
    mel_window: int = 640  # samples
    mel_hop: int = 160  # samples; a frame holds hop_samples / mel_hop mel vectors side by side

    def __post_init__(self) -> None:
        if not len(self.hidden_dims) == len(self.kernel_sizes) == len(self.strides):
            raise InputError(
                f"encoder_config: hidden_dims ({len(self.hidden_dims)}), kernel_sizes ({len(self.kernel_sizes)}) and "
                f"strides ({len(self.strides)}) must have one entry per convolution, so the same length"
            )
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
    def chunk_frames(self) -> int:
        """Frames that may look at one another: the unit of streaming."""
        return self.lookahead_size + 1

    @property
    def stem_dim(self) -> int:
        """Channels that leave the stem."""
        return self.hidden_dims[-1] if self.stem == "conv" else self.mel_bins * (self.hop_samples // self.mel_hop)


@dataclass(frozen=True)
class FocalConfig:
    """What compressor and decompressor share: focal modulation (arXiv 2203.11926) made causal (arXiv 2509.16195)."""

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


@dataclass(frozen=True)
class CompressorConfig(FocalConfig):
    """Features to latents."""

    input_dim: int = 1024
    output_dim: int = 13
    downscale_factors: tuple[int, ...] = (1, 1, 1)

    def __post_init__(self) -> None:
        _same_length("compressor_config", "hidden_dims", self.hidden_dims, "downscale_factors", self.downscale_factors)


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
    """Codes to features; `lookahead_size` + 1 frames meet in the refiner."""

    input_dim: int = 13
    output_dim: int = 1024
    upscale_factors: tuple[int, ...] = (1, 1, 1)
    last_window_size: int = 512
    lookahead_size: int = 3

    def __post_init__(self) -> None:
        _same_length("decompressor_config", "hidden_dims", self.hidden_dims, "upscale_factors", self.upscale_factors)


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
class CodecConfig:
    """All five stages. Raises InputError where stages do not fit together."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    compressor: CompressorConfig = field(default_factory=CompressorConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    decompressor: DecompressorConfig = field(default_factory=DecompressorConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

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
        for stage in ("encoder", "compressor", "decompressor", "decoder"):
            if not getattr(self, stage).causal:
                raise InputError(
                    f'codec config: {stage}_config has "causal": false; this version runs the streaming (causal) '
                    "family only, so use a *_causal model"
                )
        down, up = math.prod(self.compressor.downscale_factors), math.prod(self.decompressor.upscale_factors)
        if down != up:
            raise InputError(
                f"codec config: the product of downscale_factors {down} must equal that of upscale_factors {up}"
            )
        if self.encoder.chunk_frames % down:
            raise InputError(
                f"codec config: a chunk of {self.encoder.chunk_frames} frames must hold a whole number of tokens, "
                f"but downscale_factors multiply to {down}"
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
        known = {f"{stage}_name" for stage in STAGE_NAMES} | {f"{stage}_config" for stage in STAGE_NAMES}
        if unknown := sorted(set(raw) - known):
            raise InputError(f"{source}: unknown key {unknown[0]!r}; known keys are {', '.join(sorted(known))}")
        stages = {}
        for stage_field in dataclasses.fields(cls):
            stage = stage_field.name
            name = raw.get(f"{stage}_name", STAGE_NAMES[stage])
            if name != STAGE_NAMES[stage]:
                raise InputError(
                    f"{source}: {stage}_name {name!r} is not supported here; this version has {STAGE_NAMES[stage]!r}"
                )
            section = f"{source}: {stage}_config"
            values = raw.get(f"{stage}_config")
            stages[stage] = dataclass_from_dict(STAGE_CLASSES[stage], {} if values is None else values, section)
        try:
            return cls(**stages)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None

    @classmethod
    def from_file(cls, path: str | Path) -> CodecConfig:
        """Read a published `config.json`. Raises InputError when it is no JSON or does not fit."""
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a JSON file ({error}); expected a codec's config.json") from None
        return cls.from_dict(raw, str(path))

    def to_dict(self) -> dict[str, Any]:
        """The published layout, with every key spelled out."""
        out: dict[str, Any] = {}
        for stage, name in STAGE_NAMES.items():
            out[f"{stage}_name"] = name
            out[f"{stage}_config"] = {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in dataclasses.asdict(getattr(self, stage)).items()
            }
        return out


STAGE_CLASSES: dict[str, Any] = {
    "encoder": EncoderConfig,
    "compressor": CompressorConfig,
    "quantizer": QuantizerConfig,
    "decompressor": DecompressorConfig,
    "decoder": DecoderConfig,
}

Config = TypeVar("Config")


def dataclass_from_dict(cls: type[Config], raw: Any, section: str) -> Config:
    """Build a flat frozen dataclass from parsed JSON or YAML; lists become tuples.

    Args:
        cls: the dataclass.
        raw: a mapping of its field names to values.
        section: what to call it in error messages.

    Raises:
        InputError: naming `section` and the key, for unknown or missing keys and values of the wrong type.
    """
    if not isinstance(raw, dict):
        raise InputError(f"{section}: expected a mapping, found {type(raw).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(str(key) for key in set(raw) - set(fields)):
        raise InputError(f"{section}: unknown key {unknown[0]!r}; known keys are {', '.join(sorted(fields))}")
    values = {}
    for key, value in raw.items():
        kind = str(fields[key].type)
        if isinstance(value, list):
            value = tuple(value)
        if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not _fits(value, kind):
            raise InputError(f"{section}: {key} is {value!r}, expected {kind}")
        values[key] = value
    try:
        return cls(**values)
    except TypeError as error:
        raise InputError(f"{section}: {str(error).split('__init__() ')[-1]}") from None


def _fits(value: Any, kind: str) -> bool:
    """Whether a parsed value has the annotated type. Annotations are strings here (postponed evaluation)."""
    for option in (part.strip() for part in kind.split("|")):
        if option == "None" and value is None:
            return True
        if option == "bool" and isinstance(value, bool):
            return True
        if option == "int" and isinstance(value, int) and not isinstance(value, bool):
            return True
        if option == "float" and isinstance(value, float):
            return True
        if option == "str" and isinstance(value, str):
            return True
        if option.startswith("tuple[") and isinstance(value, tuple):
            item = option[len("tuple[") :].split(",")[0].rstrip("]")
            return all(_fits(entry, item) for entry in value)
    return False


def _same_length(section: str, left_name: str, left: tuple, right_name: str, right: tuple) -> None:
    if len(left) != len(right):
        raise InputError(
            f"{section}: {left_name} ({len(left)} entries) and {right_name} ({len(right)} entries) must have one "
            "entry per block, so the same length"
        )
