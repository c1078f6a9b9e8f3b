"""What a codec is trained to do: sound like the input at several resolutions, and use its whole codebook.

Legend: B batch, S samples, N latents.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.network.mel import mel_filterbank, slaney_filterbank
from tokenizer.training.losses.intelligibility import Intelligibility
from tokenizer.training.losses.loudness import Loudness

RESOLUTIONS = ((2048, 100), (1024, 80), (512, 64), (256, 40))  # samples of the window, mel bands
SHORTEST = 2048  # samples that every loss can do with; shorter waves are filled with silence
PUBLISHED_WINDOW, PUBLISHED_BANDS = 1024, 80  # of the log-mel loss of arXiv 2509.16195, with a hop of 20 ms


class WaveLosses(nn.Module):
    """The losses between two waves that a stage asks for by name.

    Args:
        sample_rate: Hz.
        names: among "mel" (log-mel L1, one resolution), "multi_mel" and "convergence" (`SpectralLoss`),
            "intelligibility" and "loudness"; others are not this module's.
    """

    def __init__(self, sample_rate: int, names: set[str]) -> None:
        super().__init__()
        self.names = names
        self.mel = LogMelLoss(sample_rate) if "mel" in names else None
        self.spectral = SpectralLoss(sample_rate) if names & {"multi_mel", "convergence"} else None
        self.intelligibility = Intelligibility(sample_rate) if "intelligibility" in names else None
        self.loudness = Loudness(sample_rate) if "loudness" in names else None

    def forward(self, wave: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Compare [B, S] with [B, S]: scalars by name."""
        losses, missing = {}, max(0, SHORTEST - wave.shape[1])
        wave, target = F.pad(wave, (0, missing)), F.pad(target, (0, missing))
        with torch.autocast(wave.device.type, enabled=False):  # spectra span more decades than bfloat16 resolves
            if self.mel is not None:
                losses["mel"] = self.mel(wave, target)
            if self.spectral is not None:
                losses["multi_mel"], losses["convergence"] = self.spectral(wave, target)
            if self.intelligibility is not None:
                losses["intelligibility"] = self.intelligibility(wave, target)
            if self.loudness is not None:
                losses["loudness"] = self.loudness(wave, target)
        return {name: value for name, value in losses.items() if name in self.names}


class LogMelLoss(nn.Module):
    """Mean difference of log-mel magnitudes at one resolution, windows of 1,024 samples every 20 ms, 80 bands.

    As in the published recipe the bands are Slaney's, of unit area; so the floor lies about 40 dB higher than it would
    for bands of unit peak.
    """

    floor = 1e-5

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.hop = sample_rate // 50
        self.register_buffer("window", torch.hann_window(PUBLISHED_WINDOW), persistent=False)
        mels = slaney_filterbank(sample_rate, PUBLISHED_WINDOW, PUBLISHED_BANDS).float()
        self.register_buffer("mels", mels, persistent=False)

    def forward(self, wave: Tensor, target: Tensor) -> Tensor:
        """Compare [B, S] with [B, S]: nepers."""
        return (self._log_mel(wave) - self._log_mel(target)).abs().mean()

    def _log_mel(self, wave: Tensor) -> Tensor:
        window = self.get_buffer("window")
        spectrum = torch.stft(wave, PUBLISHED_WINDOW, self.hop, window=window, return_complex=True)
        magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-9)
        return torch.log((magnitude.transpose(1, 2) @ self.get_buffer("mels")).clamp(min=self.floor))


class SpectralLoss(nn.Module):
    """Log-mel L1 and spectral convergence, averaged over window lengths (arXiv 1910.11480, section 3.2).

    Args:
        sample_rate: Hz.
    """

    floor = 1e-5  # mel magnitude below which differences are inaudible

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        for window, bands in RESOLUTIONS:
            self.register_buffer(f"window_{window}", torch.hann_window(window), persistent=False)
            mels = mel_filterbank(sample_rate, window, bands).float()
            # A band narrower than the bin spacing has no bin of its own; it would only add a constant.
            self.register_buffer(f"mels_{window}", mels[:, mels.sum(0) > 0], persistent=False)

    def forward(self, wave: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Compare [B, S] with [B, S]: (log-mel L1 in nepers, spectral convergence), both scalars."""
        mel_loss = wave.new_zeros(())
        convergence = wave.new_zeros(())
        for window, _ in RESOLUTIONS:
            got, wanted = self._magnitude(wave, window), self._magnitude(target, window)
            convergence = convergence + ((wanted - got).norm(dim=(1, 2)) / (wanted.norm(dim=(1, 2)) + 1e-3)).mean()
            mels = self.get_buffer(f"mels_{window}")
            mel_loss = mel_loss + (self._log(got, mels) - self._log(wanted, mels)).abs().mean()
        return mel_loss / len(RESOLUTIONS), convergence / len(RESOLUTIONS)

    def _log(self, magnitude: Tensor, mels: Tensor) -> Tensor:
        return torch.log((magnitude.transpose(1, 2) @ mels).clamp(min=self.floor))

    def _magnitude(self, wave: Tensor, window: int) -> Tensor:
        """[B, window / 2 + 1, frames], scaled so that a full-scale sine is about 1."""
        taps = self.get_buffer(f"window_{window}")
        spectrum = torch.stft(wave, window, window // 4, window=taps, return_complex=True)
        # The root's slope is infinite at silence; the small constant bounds it.
        return torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-9) * (2 / taps.sum())


def entropy_term(latents: Tensor, temperature: float, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The quantizer's two entropies, exactly, over all 2^bits codes (arXiv 2406.07548, equation 7).

    A soft assignment softmax(temperature * u.c) over the corners c of a hypercube factorises over the bits. So the
    entropy of one assignment is a sum over bits, and the mean assignment over a batch is the product of two thin
    matrices (one row a latent, one column a code of half the bits): no [N, 2^bits] matrix is ever made.

    Args:
        latents: [N, bits] on the unit sphere.
        temperature: larger is nearer to the hard assignment.
        kept: bool [N], the latents that count; None: all.

    Returns:
        Mean entropy of the assignments, and entropy of the mean assignment, in nats.
        Training lowers the first (decided latents) and raises the second (used codes).
    """
    count, bits = latents.shape
    weights = torch.ones(count, device=latents.device) if kept is None else kept.float()
    weights = (weights / weights.sum().clamp(min=1))[:, None]
    logits = 2 * temperature * latents.float() / bits**0.5
    log_on, log_off = nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits)
    on, off = log_on.exp(), log_off.exp()
    per_sample = -((on * log_on + off * log_off) * weights).sum()
    halves = []
    for part_on, part_off in zip(on.tensor_split(2, 1), off.tensor_split(2, 1), strict=True):
        joint = on.new_ones(count, 1)
        for bit in range(part_on.shape[1]):
            joint = (joint[:, :, None] * torch.stack([part_off[:, bit], part_on[:, bit]], 1)[:, None]).flatten(1)
        halves.append(joint)
    with torch.autocast(latents.device.type, enabled=False):  # bfloat16 would blur the entropy by hundredths of a nat
        mean = halves[0].T @ (halves[1] * weights)
    return per_sample, -(mean * mean.clamp(min=1e-20).log()).sum()  # a code never assigned has a slope without end
