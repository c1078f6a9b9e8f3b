"""FEATURES -> WAVE with voices that repeat themselves: the Fourier head, and a comb filter at the pitch that it says.

What the network renders of a voice at 600 bit/s is its harmonics with noise between them, most of all below 1.5 kHz.
Where there is a voice, 25 % of each sample's low band give way to that of one period before, and 15 % to that of two:
the harmonics add up and the noise does not. Such a long-term postfilter is common in speech codecs (Chen and Gersho,
"Adaptive postfiltering for quality enhancement of coded speech", 1995; below some frequency alone: AMR-WB+, 3GPP TS
26.290). Here the period needs no search, since the network says the pitch. No latency is added.

The unit of time is a hop (20 ms), that of pitch a turn a hop (50 Hz).

Legend: B batch, T frames, D channels, S samples, K bins of the low band.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tokenizer.network.fourier import FourierHead
from tokenizer.network.stage_configs import DecoderConfig

LOWEST, HIGHEST = 1.0, 10.0  # turns a hop: 50 to 500 Hz
TAPS = (0.25, 0.15)  # of the wave one and two periods before, where a voice is certain
OPEN, SHUT = 28.0, 34.0  # turns a hop between which the low band ends: 1.4 to 1.7 kHz
START_PITCH, START_VOICING = -0.5, -2.0  # before training: about 120 Hz, and hardly a voice


class Voice(NamedTuple):
    """What a network says of the voice. pitch: [B, T], turns a hop. voicing: [B, T], logits of there being one."""

    pitch: Tensor
    voicing: Tensor


class CombHead(FourierHead):
    """Args: config, whose frames are of `n_fft` samples every `hop_length`."""

    class State(NamedTuple):
        """samples: [B, n_fft - hop], what earlier frames add to samples not yet out.

        low: [B, n_fft - hop], the part of that which is the low band.
        past: [B, 2 hop + 1], the low band of the last samples that are out.
        pitch: [B], turns a hop, at the end of the last hop; 0 before the first.
        strength: [B] of the filter, there too, in [0, 1].
        """

        samples: Tensor
        low: Tensor
        past: Tensor
        pitch: Tensor
        strength: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.source = nn.Linear(config.dim, 2)
        nn.init.normal_(self.source.weight, std=0.1 * config.dim**-0.5)
        with torch.no_grad():
            self.source.bias.copy_(torch.tensor([START_PITCH, START_VOICING]))
        self.reach = len(TAPS) * round(self.hop / LOWEST) + 1  # samples of past: the longest periods, a neighbour
        overlap = self.n_fft // self.hop
        self.bins = min(round(SHUT * overlap), self.n_fft // 2 + 1)
        kept = (SHUT - torch.arange(self.bins) / overlap) / (SHUT - OPEN)
        low = self.get_buffer("basis").unflatten(0, (2, -1))[:, : self.bins] * kept.clamp(max=1)[:, None]
        self.register_buffer("low_basis", low.flatten(0, 1), persistent=False)
        self.register_buffer("ramp", (torch.arange(self.hop) + 1) / self.hop, persistent=False)

    def init_state(self, batch: int) -> State:  # type: ignore[override]
        samples, nothing = super().init_state(batch), self.proj.weight.new_zeros(batch)
        past = self.proj.weight.new_zeros(batch, self.reach)
        return self.State(samples, samples.clone(), past, nothing, nothing.clone())

    def voice(self, x: Tensor) -> Voice:
        """[B, T, D] -> pitch and voicing."""
        raw, voicing = self.source(x.to(self.source.weight.dtype)).unbind(-1)
        return Voice(LOWEST * (HIGHEST / LOWEST) ** raw.sigmoid(), voicing)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:  # type: ignore[override]
        """[B, T, D] -> [B, T * hop]."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.proj.weight.dtype)
            spectrum, (pitch, voicing) = self._spectrum(x), self.voice(x)
            wave, samples = self._wave(spectrum, self.get_buffer("basis"), state.samples)
            lowest = spectrum.unflatten(2, (2, -1))[:, :, :, : self.bins].flatten(2)
            low, low_samples = self._wave(lowest, self.get_buffer("low_basis"), state.low)
            strength = voicing.sigmoid().square()
            joined = torch.cat([state.past, low], dim=1)
            added = self._missing(joined, self._along(pitch, state.pitch).nan_to_num(LOWEST).clamp(min=LOWEST))
            filtered = wave + self._along(strength, state.strength) * added
            past = joined[:, joined.shape[1] - self.reach :]
            return filtered, self.State(samples, low_samples, past, pitch[:, -1], strength[:, -1])

    def unfiltered(self, x: Tensor, state: State) -> tuple[Tensor, Voice]:
        """[B, T, D] -> the wave of `FourierHead`, [B, T * hop], and the voice: what a training compares, since its
        losses would undo the filter (docs/experiments.md)."""
        with torch.autocast(x.device.type, enabled=False):
            return super().step(x, state.samples)[0], self.voice(x)

    def _missing(self, joined: Tensor, pitch: Tensor) -> Tensor:
        """What full strength adds: the low band [B, reach + S], the pitch at each of the last S samples -> [B, S]."""
        low = joined[:, self.reach :]
        here = torch.arange(self.reach, joined.shape[1], device=joined.device)
        added = torch.zeros_like(low)
        for periods, tap in enumerate(TAPS, start=1):
            before = periods * self.hop / pitch  # samples
            whole = before.floor()
            left, right = (joined.gather(1, here - whole.long() - more) for more in (1, 0))
            added = added + tap * (right + (before - whole) * (left - right) - low)
        return added

    def _along(self, values: Tensor, before: Tensor) -> Tensor:
        """Values at the ends of hops [B, T], the one before [B] -> at each sample on lines between, [B, T * hop]."""
        starts = torch.cat([before[:, None], values[:, :-1]], dim=1)
        return (starts[..., None] + (values - starts)[..., None] * self.get_buffer("ramp")).flatten(1)
