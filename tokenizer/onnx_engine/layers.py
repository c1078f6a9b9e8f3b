"""Layers that several stages of the codec share, as nodes of a graph.

Legend: B batch, T frames of a step, D channels, K kernel size.

Between layers the frames are [B, 1, T, D], and around convolutions [B, D, 1, T]: the runtime's fast convolution wants
two dimensions. A step is bound by reading the weights, so each product that mixes channels is a MatMul by a constant
[in, out], which the runtime packs once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenizer.onnx_engine.state import END, StepGraph
from tokenizer.streaming import CausalConv1d, FeedForward

TO_CONV, FROM_CONV = [0, 3, 1, 2], [0, 2, 3, 1]  # [B, 1, T, D] -> [B, D, 1, T] and back


def linear(g: StepGraph, x: str, name: str, layer: nn.Linear, scale: Tensor | float = 1.0) -> str:
    """A Linear whose outputs are multiplied by `scale`, one number or one an output."""
    scale = torch.as_tensor(scale)
    bias = None if layer.bias is None else layer.bias * scale
    return g.builder.dense(x, name, layer.weight * scale.reshape(-1, 1), bias)


def layer_norm(g: StepGraph, x: str, name: str, layer: nn.LayerNorm) -> str:
    weights = [g.builder.weight(f"{name}.{part}", getattr(layer, part)) for part in ("weight", "bias")]
    return g.op("LayerNormalization", x, *weights, axis=-1, epsilon=layer.eps)


def feed_forward(g: StepGraph, x: str, name: str, layer: FeedForward, scale: Tensor | float = 1.0) -> str:
    x = g.op("Gelu", linear(g, x, f"{name}.in_proj", layer.in_proj))
    return linear(g, x, f"{name}.out_proj", layer.out_proj, scale)


def dense_conv(
    g: StepGraph, x: str, name: str, weight: Tensor, bias: Tensor | None, stride: int, replicate: bool, exact: bool
) -> str:
    """A causal convolution that mixes all channels, weight [out, in, K], as a product over frames laid side by side."""
    taps = weight.shape[2]
    if taps > 1:
        state = g.state(f"{name}.past", (1, 0, weight.shape[1]), axis=2, past=taps - 1, rate=0)
        padded = g.join(state, x, first_frame(g, x, 2) if replicate else None)
        parts = []
        for tap in range(taps):
            end = tap + 1 - taps or END
            bounds = [g.builder.ints(value) for value in (tap, end, 2, stride)]
            parts.append(g.op("Slice", padded, *bounds))
        x = g.op("Concat", *parts, axis=3)
    return g.builder.dense(x, name, weight.transpose(1, 2).flatten(1), bias, exact)


def grouped_conv(g: StepGraph, x: str, name: str, layer: CausalConv1d, rate: int) -> str:
    """A causal convolution of stride 1 within groups of channels, [B, D, 1, T] -> the same."""
    past = layer.kernel_size[0] - 1
    state = g.state(f"{name}.past", (layer.in_channels, 1, 0), axis=3, past=past, rate=rate)
    joined = g.join(state, x, first_frame(g, x, 3) if layer.replicate else None)
    if state.history:
        joined = g.window(state, joined, g.length(x, 3))
    weights = [g.builder.weight(f"{name}.weight", layer.weight[:, :, None])]
    if layer.bias is not None:
        weights.append(g.builder.weight(f"{name}.bias", layer.bias))
    return g.op("Conv", joined, *weights, group=layer.groups, kernel_shape=[1, past + 1])


def first_frame(g: StepGraph, x: str, axis: int) -> str:
    return g.slice(x, g.builder.ints(0), g.builder.ints(1), axis)
