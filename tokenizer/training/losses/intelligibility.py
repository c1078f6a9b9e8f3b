"""How much of the speech would be understood, as a loss: STOI and ESTOI, differentiable.

STOI: Taal et al., IEEE TASLP 19 (7), 2011. ESTOI: Jensen and Taal, IEEE/ACM TASLP 24 (11), 2016. Both compare envelopes
of third-octave bands over segments of 384 ms. Two departures make them smooth enough to train on: the windows are cut
at the wave's own rate instead of after resampling to 10 kHz, and STOI's clipping is left out.

Legend: B batch, S samples, T frames, K bands, M segments.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BANDS = 15
LOWEST_BAND = 150.0  # Hz, centre
WINDOW_SECONDS, HOP_SECONDS = 0.0256, 0.0128
SEGMENT = 30  # frames: 384 ms
SEGMENT_STEP = 3  # frames from one segment to the next; the measures themselves step by one, for no gain in training
SILENCE = 1e-4  # frames this far (40 dB) below the loudest of a row are left out of both waves


class Intelligibility(nn.Module):
    """1 - (STOI + ESTOI) / 2, near enough.

    Args:
        sample_rate: Hz; at least 10 kHz, so that the highest band (4.3 kHz in its middle) is there.
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.window, self.hop = round(WINDOW_SECONDS * sample_rate), round(HOP_SECONDS * sample_rate)
        self.n_fft = 1 << (self.window - 1).bit_length() + 1
        frequency = torch.linspace(0, sample_rate / 2, self.n_fft // 2 + 1)
        centre = LOWEST_BAND * 2 ** (torch.arange(BANDS)[:, None] / 3)
        inside = (frequency >= centre * 2 ** (-1 / 6)) & (frequency < centre * 2 ** (1 / 6))
        self.register_buffer("bands", inside.float(), persistent=False)
        self.register_buffer("taps", torch.hann_window(self.window), persistent=False)

    def forward(self, wave: Tensor, target: Tensor) -> Tensor:
        """Compare [B, S] with [B, S]: a scalar, 0 for the same, about 1 for noise.

        Rows with less than a segment of speech do not count.
        """
        got, wanted = self._power(wave), self._power(target)
        energy = wanted.sum(1)
        loud = energy > SILENCE * energy.amax(1, keepdim=True)
        order = loud.logical_not().to(torch.uint8).argsort(dim=1, stable=True)  # speech first, in its order
        got, wanted = self._segments(got, order), self._segments(wanted, order)
        start = torch.arange(got.shape[1], device=wave.device) * SEGMENT_STEP
        whole = (start[None] + SEGMENT <= loud.sum(1, keepdim=True)).to(got.dtype)  # [B, M]
        got, wanted = _normalized(got, -1), _normalized(wanted, -1)
        stoi = (got * wanted).sum(-1).mean(-1)
        estoi = (_normalized(got, -2) * _normalized(wanted, -2)).sum((-1, -2)) / SEGMENT
        return ((1 - (stoi + estoi) / 2) * whole).sum() / whole.sum().clamp(min=1)

    def _power(self, wave: Tensor) -> Tensor:
        """[B, n_fft / 2 + 1, T]."""
        taps = self.get_buffer("taps")
        wave = F.pad(wave, (0, max(0, SEGMENT * self.hop - wave.shape[1])))  # so that there is a segment, if of silence
        spectrum = torch.stft(wave, self.n_fft, self.hop, self.window, taps, return_complex=True)
        return spectrum.real.square() + spectrum.imag.square()

    def _segments(self, power: Tensor, order: Tensor) -> Tensor:
        """Envelopes of the bands, frames reordered, in overlapping segments: [B, M, K, SEGMENT]."""
        envelopes = torch.sqrt(self.get_buffer("bands") @ power + 1e-10)
        envelopes = envelopes.gather(2, order[:, None].expand(-1, BANDS, -1))
        return envelopes.unfold(2, SEGMENT, SEGMENT_STEP).transpose(1, 2)


def _normalized(x: Tensor, dim: int) -> Tensor:
    """Zero mean and unit length along `dim`."""
    x = x - x.mean(dim, keepdim=True)
    return x * torch.rsqrt(x.square().sum(dim, keepdim=True) + 1e-12)
