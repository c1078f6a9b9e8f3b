"""Discriminators of the waveform, and the losses of the game.

"waves": multi-period and multi-scale discriminators, HiFi-GAN, arXiv 2010.05646, as in the published recipe of
FocalCodec-Stream. "spectra": discriminators of spectrograms at several resolutions, after arXiv 2210.13438, section
3.4, narrower, for training on CPUs. "mixed": the multi-period ones beside those of spectra. Hinge loss: arXiv
1705.02894. Feature matching: arXiv 1910.06711. Losses are summed over discriminators.

Legend: B batch, S samples, C channels, F bins, T frames.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tokenizer.training.stages import Outcome

PERIODS = (2, 3, 5, 7, 11)
SCALES = 3  # the wave, and twice halved in rate
WINDOWS = (1024, 512, 256)  # samples, of the discriminators of spectra
SPECTRUM_CHANNELS = 16
COMPRESSION = 0.3  # exponent of magnitudes, so that soft bins are seen beside loud ones
SLOPE = 0.1  # of the leaky rectifiers

Judgement = list[Tensor]  # every layer's output; the last is the score


class PeriodDiscriminator(nn.Module):
    """Sees the samples that lie `period` apart side by side."""

    def __init__(self, period: int, width: float) -> None:
        super().__init__()
        self.period = period
        channels = [1] + [max(4, round(c * width)) for c in (32, 128, 512, 1024, 1024)]
        strides = (3, 3, 3, 3, 1)
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(channels[i], channels[i + 1], (5, 1), (stride, 1), padding=(2, 0)))
            for i, stride in enumerate(strides)
        )
        self.score = weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, wave: Tensor) -> Judgement:
        """[B, S] -> layers."""
        x = F.pad(wave[:, None], (0, -wave.shape[1] % self.period), mode="reflect")
        x = x.unflatten(2, (-1, self.period))
        return _through(x, self.layers, self.score)


class ScaleDiscriminator(nn.Module):
    """Strided, grouped convolutions of up to 41 taps.

    Args:
        width: channels relative to the published ones.
        norm: of the weights: spectral at the full rate, by length at the others, as published.
    """

    def __init__(self, width: float, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        sizes = [max(16, round(c * width) // 16 * 16) for c in (128, 128, 256, 512, 1024, 1024, 1024)]
        shapes = ((15, 1, 1), (41, 2, 4), (41, 2, 16), (41, 4, 16), (41, 4, 16), (41, 1, 16), (5, 1, 1))
        channels = [1, *sizes]
        self.layers = nn.ModuleList(
            norm(nn.Conv1d(channels[i], channels[i + 1], kernel, stride, kernel // 2, groups=groups))
            for i, (kernel, stride, groups) in enumerate(shapes)
        )
        self.score = norm(nn.Conv1d(channels[-1], 1, 3, padding=1))

    def forward(self, wave: Tensor) -> Judgement:
        """[B, S] -> layers."""
        return _through(wave[:, None], self.layers, self.score)


class SpectrumDiscriminator(nn.Module):
    """Two-dimensional convolutions over a complex spectrogram with compressed magnitudes.

    Args:
        window: samples; frames follow one another by a quarter of it.
        width: channels relative to `SPECTRUM_CHANNELS`.
    """

    def __init__(self, window: int, width: float) -> None:
        super().__init__()
        channels = max(4, round(SPECTRUM_CHANNELS * width))
        self.register_buffer("taps", torch.hann_window(window), persistent=False)
        shapes = (((9, 3), (2, 1)), ((9, 3), (2, 1)), ((9, 3), (2, 2)), ((3, 3), (1, 1)))  # bins by frames
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(channels if i else 2, channels, kernel, stride, (kernel[0] // 2, kernel[1] // 2)))
            for i, (kernel, stride) in enumerate(shapes)
        )
        self.score = weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, wave: Tensor) -> Judgement:
        """[B, S] -> layers."""
        taps = self.get_buffer("taps")
        with torch.autocast(wave.device.type, enabled=False):
            spectrum = torch.view_as_real(
                torch.stft(wave.float(), len(taps), len(taps) // 4, window=taps, return_complex=True)
            )
            spectrum = spectrum * (spectrum.square().sum(-1, keepdim=True) + 1e-6) ** ((COMPRESSION - 1) / 2)
        return _through(spectrum.movedim(3, 1), self.layers, self.score)


class Adversary(nn.Module):
    """All discriminators.

    Args:
        width: channels relative to the published ones.
        kind: "waves", "spectra" or "mixed".
        samples: of each row that they hear, at a random place, the same for made and real; None: all.
    """

    def __init__(self, width: float = 1.0, kind: str = "waves", samples: int | None = None) -> None:
        super().__init__()
        periods, windows = () if kind == "spectra" else PERIODS, () if kind == "waves" else WINDOWS
        self.samples = samples
        self.periods = nn.ModuleList(PeriodDiscriminator(period, width) for period in periods)
        self.scales = nn.ModuleList(
            ScaleDiscriminator(width, weight_norm if scale else spectral_norm)
            for scale in range(SCALES if kind == "waves" else 0)
        )
        self.spectra = nn.ModuleList(SpectrumDiscriminator(window, width) for window in windows)

    def forward(self, wave: Tensor) -> list[Judgement]:
        """[B, S] -> what each discriminator makes of it."""
        judgements = [judge(wave) for judge in (*self.periods, *self.spectra)]
        for judge in self.scales:
            judgements.append(judge(wave))
            wave = F.avg_pool1d(wave[:, None], 4, 2, padding=2)[:, 0]
        return judgements

    def _excerpt(self, outcome: Outcome) -> tuple[Tensor, Tensor]:
        """Made and real, [B, S] each, of the samples that are heard."""
        assert outcome.wave is not None and outcome.target is not None
        if self.samples is None or self.samples >= outcome.wave.shape[1]:
            return outcome.wave, outcome.target
        device, places = outcome.wave.device, outcome.wave.shape[1] - self.samples + 1
        place = torch.randint(places, (), device=device) + torch.arange(self.samples, device=device)
        return outcome.wave[:, place], outcome.target[:, place]

    def discrimination(self, outcome: Outcome) -> Tensor:
        """The discriminators' loss: real above 1, made below -1. The codec gets no gradient of it."""
        wave, target = self._excerpt(outcome)
        made, real = self(wave.detach()), self(target)
        terms = [F.relu(1 - r[-1]).mean() + F.relu(1 + m[-1]).mean() for m, r in zip(made, real, strict=True)]
        return torch.stack(terms).sum()

    def losses(self, outcome: Outcome) -> dict[str, Tensor]:
        """What the codec is to lower: being told from real, in the score and in any layer."""
        wave, target = self._excerpt(outcome)
        self.requires_grad_(False)
        made = self(wave)
        with torch.no_grad():
            real = self(target)
        self.requires_grad_(True)
        adversarial = torch.stack([-m[-1].mean() for m in made]).sum()
        pairs = [pair for m, r in zip(made, real, strict=True) for pair in zip(m, r, strict=True)]
        matching = [(got - wanted).abs().mean() for got, wanted in pairs]
        return {"adversarial": adversarial, "feature_matching": torch.stack(matching).sum()}


def _through(x: Tensor, layers: nn.ModuleList, score: nn.Module) -> Judgement:
    outputs = []
    for layer in layers:
        x = F.leaky_relu(layer(x), SLOPE)
        outputs.append(x)
    return [*outputs, score(x)]
