"""Layers that several stages of the codec share, as nodes of a graph.

Legend: B batch, T frames of a step, D channels, K kernel size.

Between layers the frames are [B, 1, T, D], and around convolutions [B, D, 1, T]: the runtime's fast convolution wants
two dimensions. A step is bound by reading the weights, so each product that mixes channels is a MatMul by a constant
[in, out], which the runtime packs once.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from tokenizer.network.streaming import CausalConv1d, FeedForward
from tokenizer.onnx_engine.state import END, LONG, StepGraph

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
    x = side_by_side(g, x, name, weight.shape[2], weight.shape[1], stride, replicate)
    return g.builder.dense(x, name, weight.transpose(1, 2).flatten(1), bias, exact)


def side_by_side(g: StepGraph, x: str, name: str, taps: int, channels: int, stride: int, replicate: bool) -> str:
    """[B, 1, T, D] -> each frame with the `taps` - 1 before it, [B, 1, ceil(T / stride), taps * D], earliest first."""
    if taps == 1:
        return x
    state = g.state(f"{name}.past", (1, 0, channels), axis=2, past=taps - 1, rate=0)
    padded = g.join(state, x, first_frame(g, x, 2) if replicate else None)
    parts = []
    for tap in range(taps):
        bounds = [g.builder.ints(value) for value in (tap, tap + 1 - taps or END, 2, stride)]
        parts.append(g.op("Slice", padded, *bounds))
    return g.op("Concat", *parts, axis=3)


def grouped_conv(g: StepGraph, x: str, name: str, layer: CausalConv1d, rate: int) -> str:
    """A causal convolution of stride 1 within groups of channels, [B, 1, T, D] -> the same."""
    if g.builder.rounds(layer.weight[: layer.out_channels // layer.groups].flatten(1)):
        return _grouped_products(g, x, name, layer, rate)
    y = depthwise_conv(g, g.op("Transpose", x, perm=TO_CONV), name, layer, rate)
    return g.op("Transpose", y, perm=FROM_CONV)


def _grouped_products(g: StepGraph, x: str, name: str, layer: CausalConv1d, rate: int) -> str:
    """The same as a product a group over its windows, whose weights can be 8 bits; a convolution's cannot."""
    taps, groups = layer.kernel_size[0], layer.groups
    size = layer.in_channels // groups
    state = g.state(f"{name}.past", (1, 0, layer.in_channels), axis=2, past=taps - 1, rate=rate)
    frames = g.length(x, 2)
    joined = g.join(state, x, first_frame(g, x, 2) if layer.replicate else None)
    if state.history:
        joined = g.window(state, joined, frames)
    by_group = g.op("Reshape", joined, g.builder.ints(0, -1, groups, size))
    by_group = g.op("Transpose", by_group, perm=[0, 2, 1, 3])  # [B, G, past + T, size]
    begins = g.op("Unsqueeze", g.range(frames), g.builder.ints(1))
    windows = g.op("Add", begins, g.builder.constant(np.arange(taps)))  # [T, K], the frames that each frame sees
    seen = g.op("Gather", by_group, windows, axis=2)  # [B, G, T, K, size]
    seen = g.op("Reshape", seen, g.builder.ints(0, 0, 0, taps * size))
    of_frames = g.op("ReduceMax", g.op("Abs", by_group), g.builder.ints(-1), keepdims=0)
    largest = g.op("ReduceMax", g.op("Gather", of_frames, windows, axis=2), g.builder.ints(-1))  # [B, G, T, 1]
    rows = g.builder.rows(seen, largest)
    parts = g.op("Split", rows.bytes, count=groups, axis=1, num_outputs=groups)
    outputs = [
        g.builder.product(part, f"{name}.groups.{group}", weight.transpose(1, 2).flatten(1))
        for group, (part, weight) in enumerate(zip(parts, layer.weight.chunk(groups), strict=True))
    ]
    y = g.op("Mul", g.op("Concat", *outputs, axis=1), rows.largest)  # [B, G, T, outputs of a group]
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.builder.ints(0, 1, -1, layer.out_channels))
    return y if layer.bias is None else g.op("Add", y, g.builder.weight(f"{name}.bias", layer.bias))


def depthwise_conv(g: StepGraph, x: str, name: str, layer: CausalConv1d, rate: int) -> str:
    """The same for groups of few channels, [B, D, 1, T] -> the same."""
    past = layer.kernel_size[0] - 1
    if past >= LONG:  # a history, of a vector a frame
        x = g.op("Transpose", x, perm=FROM_CONV)
        state = g.state(f"{name}.past", (1, 0, layer.in_channels), axis=2, past=past, rate=rate)
        history = g.join(state, x, first_frame(g, x, 2) if layer.replicate else None)
        joined = g.op("Transpose", g.window(state, history, g.length(x, 2)), perm=TO_CONV)
    else:
        state = g.state(f"{name}.past", (layer.in_channels, 1, 0), axis=3, past=past, rate=0)
        joined = g.join(state, x, first_frame(g, x, 3) if layer.replicate else None)
    weights = [g.builder.weight(f"{name}.weight", layer.weight[:, :, None])]
    if layer.bias is not None:
        weights.append(g.builder.weight(f"{name}.bias", layer.bias))
    return g.op("Conv", joined, *weights, group=layer.groups, kernel_shape=[1, past + 1])


def first_frame(g: StepGraph, x: str, axis: int) -> str:
    return g.slice(x, g.builder.ints(0), g.builder.ints(1), axis)
