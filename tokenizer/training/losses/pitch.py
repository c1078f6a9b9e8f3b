"""The pitch of speech by its autocorrelation, how far a decoder's own (`tokenizer.network.comb`) is from it, and
whether what it says is as periodic as the original.

The autocorrelation of a windowed piece over that of the window: Boersma, "Accurate short-term analysis of the
fundamental frequency", 1993. Pitch is taken from the original, without a gradient.

Legend: B batch, S samples, T frames.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.network.comb import Voice

LOSSES = ("pitch", "voicing", "periodicity")
LOWEST_FOUND, HIGHEST_FOUND = 1.2, 10.0  # turns a hop of 20 ms: 60 to 500 Hz
WINDOW = 3.2  # hops
OCTAVE_COST = 0.03  # of the autocorrelation, for each octave down, so that one period is preferred to two
CERTAIN = 0.9  # autocorrelation from which on a frame counts fully; it counts for nothing below ...
VOICED = 0.6
SHAKE = 2.0  # weight of the difference between a frame's error in pitch and the next one's: it sounds rough
LARGEST_SHAKE = 0.15  # octaves; larger ones are a slip of the autocorrelation
PRE_EMPHASIS = 0.9  # of the waves whose periodicity is compared
SILENCE = 1e-4  # power this far below a row's loudest frame has no pitch


class PitchLosses(nn.Module):
    """The losses of what a decoder says of the voice, and of how its wave repeats itself.

    Args:
        names: of `LOSSES`; others are not this module's.
        hop: samples; a frame's pitch is that at the end of its first hop, as `CombHead` takes it.
    """

    def __init__(self, names: set[str], hop: int) -> None:
        super().__init__()
        self.names = names & set(LOSSES)
        self.hop, self.size = hop, 2 * round(WINDOW * hop / 2)
        self.first = hop - self.size // 2  # sample of a frame at which the window begins, perhaps before it
        taps = torch.hann_window(self.size)
        self.lags = range(round(hop / HIGHEST_FOUND), round(hop / LOWEST_FOUND) + 1)
        own = torch.fft.irfft(torch.fft.rfft(taps, 2 * self.size).abs().square())
        self.register_buffer("taps", taps, persistent=False)
        self.register_buffer("own", own[: self.lags[-1] + 2] / own[0], persistent=False)

    def forward(self, voice: Voice, wave: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Scalars by name, from a voice, [B, T], a wave and the original, [B, T * hop]:

        pitch: mean distance in octaves, where the target is voiced, and `SHAKE` times its change from frame to frame.
        voicing: cross-entropy.
        periodicity: how much less the wave repeats itself at its own pitch than the target at its own, where that is
            voiced, in autocorrelation, all frequencies up to some kHz counting alike.
        """
        wanted, weight = self.found(target)
        total = weight.sum().clamp(min=1)
        losses = {}
        if "pitch" in self.names:
            off = (voice.pitch / wanted).log2()
            both = torch.minimum(weight[:, 1:], weight[:, :-1])
            shaken = (off.diff(dim=1).abs().clamp(max=LARGEST_SHAKE) * both).sum()
            losses["pitch"] = ((off.abs() * weight).sum() + SHAKE * shaken) / total
        if "voicing" in self.names:
            losses["voicing"] = F.binary_cross_entropy_with_logits(voice.voicing, weight)
        if "periodicity" in self.names:
            real, _ = self._correlation(flattened(target))
            made, _ = self._correlation(flattened(wave))
            missing = interpolated(real, self.hop / wanted) - interpolated(made, self.hop / voice.pitch.detach())
            losses["periodicity"] = (missing.clamp(min=0) * weight).sum() / total
        return losses

    @torch.no_grad()
    def found(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """Pitch [B, T], turns a hop, and how much each frame counts, 0 to 1, of a wave [B, T * hop]."""
        correlation, energy = self._correlation(wave)
        lags = torch.arange(self.lags[0], self.lags[-1] + 1, device=wave.device)
        best = (correlation[..., lags] - OCTAVE_COST * (lags / lags[0]).log2()).argmax(-1, keepdim=True) + lags[0]
        left, height, right = (correlation.gather(-1, best + shift) for shift in (-1, 0, 1))
        shift = (0.5 * (left - right) / (left - 2 * height + right - 1e-9)).clamp(-0.5, 0.5)  # of a parabola's top
        loud = energy > SILENCE * energy.amax(1, keepdim=True)
        weight = ((height - VOICED) / (CERTAIN - VOICED)).clamp(0, 1) * loud
        return (self.hop / (best + shift))[..., 0], weight[..., 0]

    def _correlation(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """Of [B, T * hop]: autocorrelation [B, T, lags from 0 on], 1 for a frame that repeats itself after so many
        samples, and energy [B, T, 1]."""
        padded = F.pad(wave[:, max(0, self.first) :], (max(0, -self.first), self.size + max(0, self.first)))
        frames = padded.unfold(1, self.size, self.hop)[:, : wave.shape[1] // self.hop] * self.get_buffer("taps")
        power = torch.view_as_real(torch.fft.rfft(frames, 2 * self.size)).square().sum(-1)
        correlation = torch.fft.irfft(power.to(torch.complex64))[..., : self.lags[-1] + 2] / self.get_buffer("own")
        energy = correlation[..., :1]
        return correlation / (energy + 1e-6), energy


def flattened(wave: Tensor) -> Tensor:
    """[B, S] with its higher frequencies raised to about the level of the lower ones."""
    return wave - PRE_EMPHASIS * F.pad(wave, (1, -1))


def interpolated(correlation: Tensor, lag: Tensor) -> Tensor:
    """Entries [B, T] of [B, T, L] at lags [B, T] between two samples."""
    below = lag.floor().clamp(min=0, max=correlation.shape[-1] - 2)
    share = (lag - below).clamp(0, 1)
    left, right = (correlation.gather(-1, (below.long() + step)[..., None])[..., 0] for step in (0, 1))
    return left + share * (right - left)
