"""The mel scale: triangular filter banks, for the log-mel stem and for the training losses."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mel_filterbank(sample_rate: int, n_fft: int, bins: int) -> Tensor:
    """Triangles of unit peak, evenly spaced on the HTK mel scale from 0 Hz to half the sample rate.

    Args:
        sample_rate: Hz.
        n_fft: samples of the Fourier transform.
        bins: number of mel bands.

    Returns:
        float64 [n_fft // 2 + 1, bins]; multiply a power or magnitude spectrum [..., n_fft // 2 + 1] by it.
    """
    edges_mel = torch.linspace(0.0, _hz_to_mel(sample_rate / 2), bins + 2, dtype=torch.float64)
    return _triangles(700.0 * (10.0 ** (edges_mel / 2595.0) - 1.0), sample_rate, n_fft)


def slaney_filterbank(sample_rate: int, n_fft: int, bins: int) -> Tensor:
    """Triangles of unit area on Slaney's mel scale, linear to 1 kHz and logarithmic above (Auditory Toolbox, 1998).

    Args and returns: as of `mel_filterbank`.
    """
    high_mel = 15 + 27 * math.log(sample_rate / 2 / 1000) / math.log(6.4)
    mel = torch.linspace(0, high_mel, bins + 2, dtype=torch.float64)
    edges = torch.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))
    return _triangles(edges, sample_rate, n_fft) * (2 / (edges[2:] - edges[:-2]))


def _triangles(edges: Tensor, sample_rate: int, n_fft: int) -> Tensor:
    """float64 [n_fft // 2 + 1, bins]: from edge i up to 1 at edge i + 1 and down to edge i + 2, in Hz."""
    frequency = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


def _hz_to_mel(hz: float) -> float:
    return float(2595.0 * torch.log10(torch.tensor(1.0 + hz / 700.0, dtype=torch.float64, device="cpu")))
