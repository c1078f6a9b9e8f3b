"""Streaming layers: convolutions on [B, T, C] with explicit state.

Legend: B batch, T frames, C channels, K kernel size.

Each streaming layer has `init_state(batch) -> State` and `step(x, state) -> (y, state)`; a State is a NamedTuple of
batch-first tensors. Offline work is `step` over a long input from `init_state`, so both share one code path.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHORT = 8  # frames up to which a convolution is computed as a product over windows


class ConvState(NamedTuple):
    """What a causal convolution remembers.

    context: [B, K - 1, C], the last inputs.
    started: [B] bool, False before a stream's first frame (the published model replicates that frame to the left).
    """

    context: Tensor
    started: Tensor


class CausalConv1d(nn.Conv1d):
    """A convolution over [B, T, C] that sees only the past.

    Args:
        replicate: True pads a new stream with its first frame (encoder and focal layers), False with zeros (decoder).

    Output length is T / stride; T must be a multiple of the stride.
    """

    State = ConvState

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
        replicate: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, groups=groups, bias=bias)
        self.replicate = replicate

    def init_state(self, batch: int) -> ConvState:
        """The initial state of `batch` streams."""
        context = self.weight.new_zeros(batch, self.kernel_size[0] - 1, self.in_channels)
        return ConvState(context, torch.zeros(batch, dtype=torch.bool, device=context.device))

    def step(self, x: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        """[B, T, C_in] -> [B, T / stride, C_out]."""
        past = self.kernel_size[0] - 1
        context = state.context.to(x.dtype)
        if self.replicate:
            context = torch.where(state.started[:, None, None], context, x[:, :1].repeat(1, past, 1))
        padded = torch.cat([context, x], dim=1)
        if x.shape[1] <= SHORT and not torch.is_grad_enabled():
            y = self._convolve_short(padded)
        else:
            y = F.conv1d(padded.transpose(1, 2), self.weight, self.bias, self.stride, groups=self.groups)
            y = y.transpose(1, 2)
        return y, ConvState(padded[:, padded.shape[1] - past :], torch.ones_like(state.started))

    def _convolve_short(self, padded: Tensor) -> Tensor:
        """The same sums as products over windows: 2 to 10 times as fast as F.conv1d on the frames of a live step."""
        taps = self.kernel_size[0]
        if self.groups == self.in_channels == self.out_channels:
            windows = padded.unfold(1, taps, self.stride[0]).transpose(2, 3)  # [B, T, K, C]
            y = (windows * self.weight[:, 0].T).sum(2)
        else:
            windows = padded.unfold(1, taps, self.stride[0])  # [B, T, C_in, K]
            batch, frames = windows.shape[:2]
            grouped = windows.reshape(batch * frames, self.groups, -1).transpose(0, 1)  # [G, B T, C_in / G * K]
            weight = self.weight.view(self.groups, self.out_channels // self.groups, -1)
            y = torch.bmm(grouped, weight.transpose(1, 2)).transpose(0, 1).reshape(batch, frames, -1)
        return y if self.bias is None else y + self.bias


class PointwiseConv(nn.Conv1d):
    """A 1x1 convolution on [B, T, C]: a Linear whose weight is stored as a convolution's, [C_out, C_in, 1]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.squeeze(-1), self.bias)


class FrameUpscale(nn.ConvTranspose1d):
    """A transposed convolution with kernel = stride on [B, T, C]: a frame becomes `factor` frames, without memory."""

    def __init__(self, in_channels: int, out_channels: int, factor: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=factor, stride=factor)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """[B, T, C_in] -> [B, T * factor, C_out]."""
        batch = x.shape[0]
        weight = self.weight.permute(2, 1, 0).reshape(-1, self.in_channels)  # [factor * C_out, C_in]
        y = F.linear(x, weight).reshape(batch, -1, self.out_channels)
        return y if self.bias is None else y + self.bias


class FeedForward(nn.Module):
    """Linear, GELU, Linear on the last dimension."""

    def __init__(self, dim: int, ffn_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, ffn_dim)
        self.out_proj = nn.Linear(ffn_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.out_proj(self.dropout(F.gelu(self.in_proj(x)))))
