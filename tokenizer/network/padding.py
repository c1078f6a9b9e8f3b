"""Layers for whole utterances of different lengths in one batch: padding has no influence.

`lengths` gives the valid part of each row. The rest is set to zero before any layer that mixes frames, so a row gets
the same zeros at its end as it would alone.

Legend: B batch, T frames, C channels.
"""

from __future__ import annotations

from torch import Tensor, arange, nn
from torch.nn import functional as F


def present(lengths: Tensor, frames: int) -> Tensor:
    """Which of `frames` positions lie within each row's length: lengths int64 [B] -> bool [B, frames]."""
    return arange(frames, device=lengths.device) < lengths[:, None]


def blank(x: Tensor, lengths: Tensor) -> Tensor:
    """[B, T, C] with zeros beyond each row's length, int64 [B]."""
    return x.masked_fill(~present(lengths, x.shape[1])[..., None], 0)


class SameConv1d(nn.Conv1d):
    """A convolution over [B, T, C] that keeps T and sees zeros outside each utterance.

    Args:
        left: zeros before the first frame, 0 to kernel_size - 1; None centres the kernel, an even one with its longer
            half ahead.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, groups: int = 1, left: int | None = None
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, groups=groups)
        self.left = (kernel_size - 1) // 2 if left is None else left

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        """[B, T, C_in] and lengths int64 [B] -> [B, T, C_out]; values beyond a row's length are undefined."""
        right = self.kernel_size[0] - 1 - self.left
        padded = F.pad(blank(x, lengths).transpose(1, 2), (self.left, right))
        return F.conv1d(padded, self.weight, self.bias, groups=self.groups).transpose(1, 2)


class FrameDownscale(nn.Conv1d):
    """A convolution with kernel = stride on [B, T, C]: `factor` frames become one; zeros fill the last group."""

    def __init__(self, in_channels: int, out_channels: int, factor: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=factor, stride=factor)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """[B, T, C_in] and lengths int64 [B] -> [B, ceil(T / factor), C_out] and the new lengths, rounded up too."""
        factor = self.stride[0]
        padded = F.pad(blank(x, lengths).transpose(1, 2), (0, -x.shape[1] % factor))
        return F.conv1d(padded, self.weight, self.bias, self.stride).transpose(1, 2), -(-lengths // factor)
