"""The encoder of Whisper (arXiv 2212.04356): what a speech recogniser hears, to learn from.

The weights are read by the names of `transformers.models.whisper.WhisperEncoder`. Two departures make it a teacher:
the log-mel front end is part of the module, so that a gradient passes from its outputs to the wave, and rows may be of
any length up to 30 s, where Whisper itself fills each up to 30 s of silence.

Legend: B batch, S samples at 16 kHz, M mel bands, T frames of 20 ms, D channels.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.checkpoint import assign, download, read_weights
from tokenizer.errors import InputError
from tokenizer.network.mel import slaney_filterbank
from tokenizer.network.padding import present

SAMPLE_RATE = 16000  # Hz
WINDOW, HOP = 400, 160  # samples of the log-mel front end
RANGE = 8.0  # decades below the loudest band of a row that are kept
FRAME = 2 * HOP  # samples from one output to the next
WEIGHTS = ("encoder.safetensors", "model.safetensors")
HUB_ID = re.compile(r"[\w-]+/whisper-[\w.-]+")
PREFIXES = ("model.encoder.", "encoder.")  # of the encoder's names in files of the whole model


@dataclass(frozen=True)
class WhisperConfig:
    """Sizes, by the names that Whisper's own configuration gives them."""

    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    num_mel_bins: int
    max_source_positions: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"Whisper: {name} is {value!r}, expected a whole number above 0")
        if self.d_model % self.encoder_attention_heads:
            raise InputError(
                f"Whisper: d_model {self.d_model} is not a multiple of encoder_attention_heads "
                f"{self.encoder_attention_heads}"
            )


class LogMel(nn.Module):
    """Whisper's log-mel spectrogram, differentiable. Args: bands, the number M of mel bands."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.register_buffer("taps", torch.hann_window(WINDOW), persistent=False)
        mels = slaney_filterbank(SAMPLE_RATE, WINDOW, bands).float()
        self.register_buffer("mels", mels, persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """[B, S] -> [B, M, ceil(S / 320) * 2], within about 2 of one another."""
        with torch.autocast(wave.device.type, enabled=False):  # powers span more decades than bfloat16 resolves
            wave = F.pad(wave.float(), (0, -wave.shape[1] % FRAME))
            spectrum = torch.stft(wave, WINDOW, HOP, window=self.get_buffer("taps"), return_complex=True)[..., :-1]
            power = spectrum.real.square() + spectrum.imag.square()
            log = (self.get_buffer("mels").T @ power).clamp(min=1e-10).log10()
            loudest = log.amax((1, 2), keepdim=True)
            return (torch.maximum(log, loudest - RANGE) + 4) / 4


class SelfAttention(nn.Module):
    """Multi-head attention among all frames that count; keys have no bias."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.k_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B, T, D] and bool [B, 1, 1, T], True where a key counts (None: everywhere) -> [B, T, D]."""
        q, k, v = (p(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """A pre-norm Transformer layer."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        dim = config.d_model
        self.self_attn = SelfAttention(dim, config.encoder_attention_heads)
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, config.encoder_ffn_dim), nn.Linear(config.encoder_ffn_dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class WhisperEncoder(nn.Module):
    """Waves to what Whisper's encoder makes of them, with the interface of `tokenizer.network.encoder.Encoder`."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config, self.dim = config, config.d_model
        self.log_mel = LogMel(config.num_mel_bins)
        self.conv1 = nn.Conv1d(config.num_mel_bins, self.dim, 3, padding=1)
        self.conv2 = nn.Conv1d(self.dim, self.dim, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.max_source_positions, self.dim)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(self.dim)

    def forward_layers(self, wave: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        """Wave [B, S] at 16 kHz, of which lengths int64 [B] samples count -> the output of every layer, [B, T, D]
        each, the last of them normalised as the recogniser's decoder gets it; and the frames that count, int64 [B].

        Raises:
            InputError: a row is longer than the encoder has positions for (30 s).
        """
        x = F.gelu(self.conv1(self.log_mel(wave)))
        x = F.gelu(self.conv2(x)).transpose(1, 2)
        longest = len(self.embed_positions.weight)
        if x.shape[1] > longest:
            raise InputError(
                f"a row of {x.shape[1] * FRAME / SAMPLE_RATE:g} s is longer than the {longest * FRAME / SAMPLE_RATE:g} "
                "s that the Whisper teacher hears at once; lower longest_seconds or crop_seconds"
            )
        x = x + self.embed_positions.weight[: x.shape[1]]
        frames = (lengths + FRAME - 1) // FRAME
        full = wave.device.type == "cpu" and bool((frames >= x.shape[1]).all())  # asking a GPU would be waiting for it
        mask = None if full else present(frames, x.shape[1])[:, None, None]
        outputs = []
        for layer in self.layers:
            x = layer(x, mask)
            outputs.append(x)
        return [*outputs[:-1], self.layer_norm(outputs[-1])], frames


def is_whisper(source: str) -> bool:
    """Whether a folder's config.json describes a Whisper model, or a Hub id is called one."""
    path = Path(source) / "config.json"
    if path.is_file():
        return "max_source_positions" in _read_json(path)
    return bool(HUB_ID.fullmatch(source)) and not Path(source).exists()


def load_whisper(source: str) -> WhisperEncoder:
    """Load a Whisper encoder.

    Args:
        source: a folder with config.json beside encoder.safetensors or model.safetensors, or a Hugging Face Hub id such
            as openai/whisper-tiny.en.

    Returns:
        The encoder in float32 on the CPU, without gradients.

    Raises:
        InputError: a file is missing or damaged, or the weights do not fit the sizes.
    """
    folder = Path(source)
    if folder.is_dir() or not HUB_ID.fullmatch(source):
        found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
        if not found or not (folder / "config.json").is_file():
            raise InputError(f"Whisper {source}: expected config.json beside {' or '.join(WEIGHTS)} there")
        config_path, weights_path = folder / "config.json", found[0]
    else:
        config_path, weights_path = download(source, WEIGHTS[1:])
    raw = _read_json(config_path)
    names = list(WhisperConfig.__dataclass_fields__)
    if missing := [name for name in names if name not in raw]:
        raise InputError(f"{config_path}: lacks {missing[0]!r}; expected Whisper's configuration")
    encoder = WhisperEncoder(WhisperConfig(**{name: raw[name] for name in names}))
    assign(encoder, _of_encoder(read_weights(weights_path)), f"Whisper {source}")
    return encoder.float().requires_grad_(False).eval()


def _of_encoder(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's weights of a file, which may be of the whole model."""
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
    return {name: tensor.float() for name, tensor in weights.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping, found {type(content).__name__}")
    return content
