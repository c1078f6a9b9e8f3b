"""What is said, as a loss: a recogniser's features of the resynthesis against those of the original, and distillation
of them into the codec's own.

The perceptual form is that of arXiv 1603.08155 with a speech encoder in place of an image classifier; per-channel scale
keeps the few large channels of a Transformer's residual stream from being all that counts. The distillation is that of
Mimi (arXiv 2410.00037, section 3.3.2) through a linear map, which is thrown away after training.

Legend: B batch, S samples, T frames, D channels of the codec, E channels of the teacher.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.config import ENCODER_SAMPLE_RATE
from tokenizer.network.encoder import Encoder
from tokenizer.network.padding import present
from tokenizer.teachers.whisper import WhisperEncoder

LOSSES = ("content", "distilled")
NOISE_RANGE = 20.0  # dB between the loudest noise and the softest
TAPS = 16  # of the resampler, periods of the lower rate to each side


Teacher = Encoder | WhisperEncoder  # full-context encoders, through which a gradient passes


class ContentLosses(nn.Module):
    """The losses that a full-context speech encoder gives.

    Args:
        names: of `LOSSES`; others are not this module's.
        rate: of the resynthesis, Hz.
        dim: channels D of the codec's features.
        teacher_dim: channels E of the teacher's.
        noise_db: lowest ratio of speech to the noise through which the teacher hears half of the rows in training, dB;
            None: no noise. A codec can move a teacher's features by details that no other ear notices; noise, the same
            for both, drowns these and leaves what is robust.
    """

    def __init__(self, names: set[str], rate: int, dim: int, teacher_dim: int, noise_db: float | None = None) -> None:
        super().__init__()
        self.noise_db = noise_db
        self.names = names & set(LOSSES)
        self.head = nn.Linear(dim, teacher_dim) if "distilled" in names else None
        self.resample = Resample(rate, ENCODER_SAMPLE_RATE)

    def forward(
        self, teacher: Teacher, features: Tensor, wave: Tensor, original: Tensor, lengths: Tensor
    ) -> dict[str, Tensor]:
        """Scalars by name.

        Args:
            teacher: whose weights need no gradient.
            features: [B, T, D], dequantized.
            wave: the resynthesis [B, S'] at the codec's output rate.
            original: [B, S] at 16 kHz.
            lengths: int64 [B], samples of `original` that count.
        """
        losses: dict[str, Tensor] = {}
        if not self.names:
            return losses
        wave = self.resample(wave)[:, : original.shape[1]]
        if self.training and self.noise_db is not None:
            noise = some_noise(original, self.noise_db)
            wave, original = wave + noise[:, : wave.shape[1]], original + noise
        with torch.no_grad():
            wanted, frames = teacher.forward_layers(original, lengths)
        if "content" in self.names:
            heard, _ = teacher.forward_layers(wave, lengths)
            distances = [scaled_distance(got, layer, frames) for got, layer in zip(heard, wanted, strict=True)]
            losses["content"] = weighted(distances)
        if self.head is not None:
            losses["distilled"] = angle(self.head(features), wanted[-1], frames)
        return losses


def some_noise(wave: Tensor, lowest_db: float) -> Tensor:
    """White noise for about half of the rows of [B, S], from `lowest_db` to `NOISE_RANGE` more below each one's power;
    silence for the others."""
    ratio = lowest_db + NOISE_RANGE * torch.rand(len(wave), 1, device=wave.device)
    level = wave.square().mean(1, keepdim=True).sqrt() * 10 ** (-ratio / 20)
    chosen = torch.rand(len(wave), 1, device=wave.device) < 0.5
    return torch.randn_like(wave) * level * chosen


def weighted(distances: list[Tensor]) -> Tensor:
    """Mean of the layers' distances in which each layer weighs twice the one before: first layers hear the sound as
    such, and only the last ones order codecs as word errors do (docs/experiments.md)."""
    total = 2.0 ** len(distances) - 1
    return torch.stack([distance * (2.0**layer / total) for layer, distance in enumerate(distances)]).sum()


def scaled_distance(got: Tensor, wanted: Tensor, frames: Tensor) -> Tensor:
    """Mean absolute difference over the frames that count, int64 [B], of [B, T, E] and [B, T', E]; the longer is cut.

    Each channel is divided by its standard deviation over the frames of `wanted`, so 0 is the same and about 1.1 is
    another utterance.
    """
    got, wanted, kept = _kept(got, wanted, frames)
    deviation = _mean((wanted - _mean(wanted, kept)).square(), kept).sqrt()
    return _mean(((got - wanted) / (deviation + 1e-3)).abs(), kept).mean()


def angle(got: Tensor, wanted: Tensor, frames: Tensor) -> Tensor:
    """1 less the mean cosine over the frames that count, of vectors less the mean of `wanted` over them."""
    got, wanted, kept = _kept(got, wanted, frames)
    cosine = F.cosine_similarity(got, wanted - _mean(wanted, kept), dim=-1)
    return 1 - _mean(cosine[..., None], kept).mean()


def _kept(got: Tensor, wanted: Tensor, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both cut to the frames that both have, in float32, and which of these count, 0 or 1, [B, T, 1]."""
    count = min(got.shape[1], wanted.shape[1])
    counts = present(frames.clamp(max=count), count)[..., None].float()
    return got[:, :count].float(), wanted[:, :count].float(), counts


def _mean(x: Tensor, kept: Tensor) -> Tensor:
    """Mean [E] over the frames of [B, T, E] that count (their number stays on the device: a GPU is not waited for)."""
    return x.where(kept > 0, 0).sum((0, 1)) / kept.sum().clamp(min=1)


class Resample(nn.Module):
    """A differentiable change of the sample rate by a windowed sinc; nothing at equal rates.

    Args:
        source, target: Hz; their ratio in lowest terms must be of small numbers.
    """

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        shared = math.gcd(source, target)
        self.up, self.down = target // shared, source // shared
        reach = TAPS * max(self.up, self.down)
        t = torch.arange(-reach, reach + 1, dtype=torch.float64)
        taps = (
            torch.sinc(t / max(self.up, self.down)) * torch.hann_window(2 * reach + 3, False, dtype=torch.float64)[1:-1]
        )
        taps = taps * (self.up / taps.sum())
        self.register_buffer("taps", taps.float()[None, None], persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """[B, S] -> [B, ceil(S * target / source)]."""
        if self.up == self.down:
            return wave
        with torch.autocast(wave.device.type, enabled=False):
            spread = wave.new_zeros(*wave.shape, self.up)
            spread[..., 0] = wave
            taps = self.get_buffer("taps")
            return F.conv1d(spread.flatten(1)[:, None], taps, stride=self.down, padding=taps.shape[2] // 2)[:, 0]
