"""FEATURES -> WAVE with voices that hum: the Fourier head, and a source of harmonics whose phase runs on.

A network that sees a quarter of a second cannot know how many periods have passed since a vowel began, so the phases
that it predicts for one frame do not join those of the next, and voiced speech sounds rough. Here it predicts the
pitch; the phase is the pitch added up, kept in the state. Where there is a voice, the harmonics of that pitch take the
place of the spectrum that the Fourier head predicts, below 3.2 kHz and with its envelope. A source that is driven by
the pitch and filtered by a network: Wang et al., "Neural source-filter-based waveform model", arXiv 1810.11946.

The unit of time is a hop (20 ms), that of pitch a turn a hop (50 Hz).

Legend: B batch, T frames, D channels, N samples of the source in a frame, K bins that it reaches.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tokenizer.network.fourier import FourierHead
from tokenizer.network.stage_configs import DecoderConfig

LOWEST, HIGHEST = 1.0, 10.0  # turns a hop: 50 to 500 Hz
REACH = 64  # turns a hop up to which there are harmonics: 3.2 kHz
POINTS = 160  # samples of the source in a hop: enough for `REACH`
KNOT = 2  # turns a hop between the points where shares, gains and phases are predicted: 100 Hz
SMOOTH = 2.5  # turns a hop, standard deviation of the envelope's smoothing over frequency
NEAR_PULSE = 1e-4  # of a sine, below which the quotient of two sines is its limit
FLOOR = 1e-8  # of an envelope's power
START_PITCH, START_VOICING = -0.5, -2.0  # before training: about 120 Hz, and hardly heard


class Voice(NamedTuple):
    """What a network says of the voice. pitch: [B, T], turns a hop. voicing: [B, T], logits of there being one."""

    pitch: Tensor
    voicing: Tensor


class HarmonicHead(FourierHead):
    """Args: config, whose frames are of `n_fft` samples every `hop_length`."""

    class State(NamedTuple):
        """samples: [B, n_fft - hop], what earlier frames add to samples not yet out.

        phase: [B] turns at the middle of the last frame, in [0, 1); pitch: [B] turns a hop there, 0 before the first.
        """

        samples: Tensor
        phase: Tensor
        pitch: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        overlap = self.n_fft // self.hop
        self.bins, self.knots = REACH * overlap + 1, REACH // KNOT + 1
        self.source = nn.Linear(config.dim, 2 + 3 * self.knots)
        nn.init.normal_(self.source.weight, std=0.1 * config.dim**-0.5)
        with torch.no_grad():
            self.source.bias.zero_()
            self.source.bias[0], self.source.bias[1] = START_PITCH, START_VOICING
        time = torch.arange(overlap * POINTS, dtype=torch.float64) / POINTS  # hops since the frame's start
        bins = torch.arange(self.bins, dtype=torch.float64)
        # The transform of n_fft samples, of which the source, having nothing above `REACH`, needs a few.
        angle = 2 * torch.pi * time[:, None] * bins / overlap
        transform = torch.cat([angle.cos(), -angle.sin()], dim=1) * (self.n_fft**0.5 / len(time))
        between = 1 - (bins[None] / (KNOT * overlap) - torch.arange(self.knots)[:, None]).abs()
        near = torch.exp(-0.5 * ((bins[:, None] - bins) / (SMOOTH * overlap)).square())
        # Of flat power, as the source's: its n_fft samples of power 1 are spread over the bins up to `REACH`.
        smooth = near / near.sum(0) * (2 * (self.bins - 1) / self.n_fft)
        self.register_buffer("time", (time - overlap / 2).float(), persistent=False)
        self.register_buffer("transform", transform.float(), persistent=False)
        self.register_buffer("between", between.clamp(min=0).float(), persistent=False)
        self.register_buffer("smooth", smooth.float(), persistent=False)

    def init_state(self, batch: int) -> State:  # type: ignore[override]
        nothing = self.proj.weight.new_zeros(batch)
        return self.State(super().init_state(batch), nothing, nothing.clone())

    def voice(self, x: Tensor) -> Voice:
        """[B, T, D] -> pitch and voicing."""
        raw = self.source(x.to(self.source.weight.dtype))
        return Voice(_pitch(raw[..., 0]), raw[..., 1])

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:  # type: ignore[override]
        """[B, T, D] -> [B, T * hop]."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.proj.weight.dtype)
            raw, at_knots = self.source(x).split([2, 3 * self.knots], dim=-1)
            pitch = _pitch(raw[..., 0].detach())  # no gradient: what a wave says of the pitch leads astray
            before = torch.cat([state.pitch[:, None], pitch[:, :-1]], dim=1)
            phase = state.phase[:, None].double() + ((before + pitch) / 2).double().cumsum(1)
            phase = (phase - phase.floor()).to(x.dtype)
            source = harmonics(pitch, phase, self.get_buffer("time")) @ self.get_buffer("transform")
            spectrum = self._voiced(self._spectrum(x), source, raw[..., 1:], at_knots)
            wave, samples = self._wave(spectrum, state.samples)
            return wave, self.State(samples, phase[:, -1], pitch[:, -1])

    def _voiced(self, direct: Tensor, source: Tensor, voicing: Tensor, at_knots: Tensor) -> Tensor:
        """Up to `REACH`, a share of the direct spectrum [B, T, n_fft + 2] gives way to the source [B, T, 2 K], which
        takes its envelope."""
        real, imaginary = direct.chunk(2, dim=-1)
        sizes = [self.bins, real.shape[-1] - self.bins]
        (real, real_above), (imaginary, imaginary_above) = real.split(sizes, dim=-1), imaginary.split(sizes, dim=-1)
        share, gain, turned = (part @ self.get_buffer("between") for part in at_knots.chunk(3, dim=-1))
        share = (share + voicing).sigmoid()
        envelope = (((real.square() + imaginary.square()) @ self.get_buffer("smooth")) + FLOOR).sqrt()
        size = share * envelope * gain.clamp(max=self.max_log_magnitude).exp()
        cosine, sine = size * turned.cos(), size * turned.sin()
        source_real, source_imaginary = source.chunk(2, dim=-1)
        real = (1 - share) * real + source_real * cosine - source_imaginary * sine
        imaginary = (1 - share) * imaginary + source_real * sine + source_imaginary * cosine
        return torch.cat([real, real_above, imaginary, imaginary_above], dim=-1)


def _pitch(raw: Tensor) -> Tensor:
    return LOWEST * (HIGHEST / LOWEST) ** raw.sigmoid()


def harmonics(pitch: Tensor, phase: Tensor, time: Tensor) -> Tensor:
    """All cosines at whole multiples of the pitch up to `REACH`, of equal amplitude, together of root mean square 1.

    Args:
        pitch: [B, T], turns a hop, constant within a frame.
        phase: [B, T], turns at the middle of each frame.
        time: [N], hops from the middle of a frame.

    Returns:
        [B, T, N].
    """
    turns = phase[..., None] + pitch[..., None] * time
    angle = math.pi * (turns - turns.round())
    count = (REACH / pitch).floor()[..., None]
    sine = angle.sin()
    at_pulse = sine.abs() < NEAR_PULSE
    # 1 + 2 (cos a + cos 2a + ... + cos na) = sin((n + 1/2) a) / sin(a / 2)
    ratio = ((2 * count + 1) * angle).sin() / torch.where(at_pulse, 1.0, sine)
    total = torch.where(at_pulse, 2 * count + 1, ratio)
    return (total - 1) * (0.5 / count).sqrt()
