"""How different two waves sound, as a loss: a perceptual model after PESQ, differentiable.

PESQ: ITU-T P.862 (2001), section 10; wide band P.862.2. Kept of it: a fixed listening level, power in critical bands,
loudness by Zwicker's law above the threshold of hearing, the dead zone of masked differences, and the asymmetry that
punishes what the codec adds more than what it leaves out. Left out: alignment in time and level and the equalization
of a channel (a codec needs none), the aggregation over intervals, and the standard's tables, for which formulas stand:
Traunmueller's bark scale (JASA 88, 1990) and Terhardt's threshold in quiet (Hearing Research 1, 1979).

Legend: B batch, S samples, T frames, K bands.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BANDS = 42  # about half a bark each
WINDOW_SECONDS = 0.032
LOWEST, HIGHEST = 60.0, 7600.0  # Hz
LISTENING_POWER = 1e7  # of speech between 350 and 3250 Hz; stands for ...
LISTENING_LEVEL = 79.0  # ... dB of sound pressure
EXPONENT = 0.23  # Zwicker's law
DEAD_ZONE = 0.25  # share of the softer of two loudnesses within which a difference is masked
ACTIVE = 1e-4  # frames this far below the loudest do not count for the level
HEARD = 1e-5  # frames this far below the level do not count for the loss
ADDED = 0.02  # weight of what the codec adds; makes both parts about equal for a codec of 0.6 kbps


class Loudness(nn.Module):
    """Args: sample_rate, Hz; at least 16 kHz."""

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        window = round(WINDOW_SECONDS * sample_rate)
        frequency = torch.linspace(0, sample_rate / 2, window // 2 + 1)
        low, high = _bark(torch.tensor(LOWEST)), _bark(torch.tensor(HIGHEST))
        band = ((_bark(frequency) - low) / (high - low) * BANDS).floor()
        members = (band == torch.arange(BANDS)[:, None]).float()
        members = members[members.sum(1) > 0]  # at low frequencies a band may fall between two bins
        centre = (members * frequency).sum(1) / members.sum(1)
        threshold = 10 ** ((_quiet(centre) - LISTENING_LEVEL) / 10) * LISTENING_POWER
        self.register_buffer("taps", torch.hann_window(window), persistent=False)
        self.register_buffer("members", members, persistent=False)
        self.register_buffer("threshold", threshold[:, None], persistent=False)
        self.register_buffer("speech", ((frequency >= 350) & (frequency <= 3250)).float(), persistent=False)

    def forward(self, wave: Tensor, target: Tensor) -> Tensor:
        """Compare [B, S] with [B, S]: a scalar, 0 for the same, about 2 for a codec of 0.6 kbps."""
        speech = self.get_buffer("speech") @ (wanted := self._power(target))
        active = (speech > ACTIVE * speech.amax(1, keepdim=True)).to(speech.dtype)
        level = (speech * active).sum(1, keepdim=True) / active.sum(1, keepdim=True).clamp(min=1) + 1e-9
        energy, gain = speech / level, (LISTENING_POWER / level)[..., None]
        got, wanted = self.get_buffer("members") @ self._power(wave) * gain, self.get_buffer("members") @ wanted * gain
        loud, wanted_loud = self._loudness(got), self._loudness(wanted)
        masked = DEAD_ZONE * torch.minimum(loud, wanted_loud).clamp(min=0)
        disturbance = ((loud - wanted_loud).abs() - masked).clamp(min=0)
        ratio = ((got.detach() + 50) / (wanted + 50)) ** 1.2
        asymmetry = torch.where(ratio < 3, 0.0, ratio.clamp(max=12))
        symmetric = (disturbance.square().mean(1) + 1e-6).sqrt()
        added = (disturbance * asymmetry).mean(1)
        soft = (energy + 0.01) ** 0.04  # softer frames count a little more, as in the standard
        frames = (symmetric + ADDED * added) / soft
        heard = (energy > HEARD).to(frames.dtype)
        return (frames * heard).sum() / heard.sum().clamp(min=1)

    def _power(self, wave: Tensor) -> Tensor:
        """[B, window / 2 + 1, T]."""
        taps = self.get_buffer("taps")
        spectrum = torch.stft(wave, len(taps), len(taps) // 2, window=taps, return_complex=True)
        return spectrum.real.square() + spectrum.imag.square()

    def _loudness(self, power: Tensor) -> Tensor:
        threshold = self.get_buffer("threshold")
        return (threshold / 0.5) ** EXPONENT * ((0.5 + 0.5 * power / threshold) ** EXPONENT - 1)


def _bark(hertz: Tensor) -> Tensor:
    return 26.81 * hertz / (1960 + hertz) - 0.53


def _quiet(hertz: Tensor) -> Tensor:
    """The threshold of hearing in quiet, dB of sound pressure."""
    kilohertz = hertz / 1000
    return 3.64 * kilohertz**-0.8 - 6.5 * torch.exp(-0.6 * (kilohertz - 3.3).square()) + 1e-3 * kilohertz**4
