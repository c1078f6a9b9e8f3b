"""The configuration of a codec: its five stages together, read and written in the published JSON layout.

A published `config.json` holds, for each of the five stages, `<stage>_name` and `<stage>_config`. Keys left out take
the defaults of `tokenizer.network.stage_configs`; unknown keys raise. There are two families: in the streaming one
every stage is causal and the decoder is WaveNeXt; in the one for whole utterances no stage is and the decoder is Vocos.
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
from tokenizer.network.stage_configs import (
    ENCODER_SAMPLE_RATE,
    CompressorConfig,
    DecoderConfig,
    DecompressorConfig,
    EncoderConfig,
    QuantizerConfig,
    VocosConfig,
)
from tokenizer.parsed import dataclass_from_dict

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
