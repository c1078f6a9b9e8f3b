"""FEATURES -> WAVE as nodes of a graph: `tokenizer.network.decoder` for a step.

Legend: B batch, T frames, D channels.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto
from torch import Tensor

from tokenizer.network.comb import HIGHEST, LOWEST, TAPS, CombHead
from tokenizer.network.decoder import ConvNeXtBlock, Decoder
from tokenizer.network.fourier import FourierHead
from tokenizer.onnx_engine.layers import (
    FROM_CONV,
    TO_CONV,
    dense_conv,
    depthwise_conv,
    layer_norm,
    linear,
    side_by_side,
)
from tokenizer.onnx_engine.state import StepGraph


def conv_next_block(g: StepGraph, x: str, name: str, block: ConvNeXtBlock, rate: int) -> str:
    y = depthwise_conv(g, g.op("Transpose", x, perm=TO_CONV), f"{name}.dwconv", block.dwconv, rate)
    y = layer_norm(g, g.op("Transpose", y, perm=FROM_CONV), f"{name}.norm", block.norm)
    y = g.op("Gelu", linear(g, y, f"{name}.pwconv1", block.pwconv1))
    return g.op("Add", x, linear(g, y, f"{name}.pwconv2", block.pwconv2, block.gamma))


def fourier_head(g: StepGraph, x: str, name: str, head: FourierHead) -> str:
    """Inverse transform and overlap-add are one convolution over spectra: a sample is a sum over all that reach it."""
    bins = head.n_fft // 2 + 1
    parts = linear(g, x, f"{name}.proj", head.proj)
    log_magnitude, phase = g.op("Split", parts, g.builder.ints(bins, bins), count=2, axis=3)
    magnitude = g.op("Exp", g.op("Min", log_magnitude, g.builder.floats(head.max_log_magnitude)))
    spectrum = [g.op("Mul", magnitude, g.op(kind, phase)) for kind in ("Cos", "Sin")]
    overlap, width = head.n_fft // head.hop, head.n_fft + 2
    frames = side_by_side(g, g.op("Concat", *spectrum, axis=3), name, overlap, width, 1, replicate=False)
    wave = g.builder.dense(frames, name, overlap_added(head.get_buffer("basis"), head.hop), exact=True)
    return comb_filtered(g, x, wave, frames, name, head) if isinstance(head, CombHead) else wave


def overlap_added(basis: Tensor, hop: int) -> Tensor:
    """[D, n_fft] -> the weight of a product with frames side by side, earliest first, [hop, n_fft / hop * D]."""
    return basis.unflatten(1, (-1, hop)).permute(2, 1, 0).flip(1).flatten(1)


def comb_filtered(g: StepGraph, x: str, wave: str, frames: str, name: str, head: CombHead) -> str:
    """`CombHead`'s filter: a wave [B, 1, T, hop] -> the same. Its products keep float32 in an 8-bit graph."""
    overlap, bins = head.n_fft // head.hop, head.n_fft // 2 + 1
    lowest = np.arange(overlap * 2 * bins).reshape(-1, bins)[:, : head.bins].flatten()
    lowest = g.op("Gather", frames, g.builder.constant(lowest), axis=3)
    low = g.builder.dense(lowest, f"{name}.low", overlap_added(head.get_buffer("low_basis"), head.hop), exact=True)
    in_line = g.op("Reshape", low, g.builder.ints(0, 1, 1, -1))  # samples along the last axis, as pitch and strength
    pitch, strength = _voice(g, x, name, head)
    period = g.op("Div", g.builder.floats(head.hop), g.op("Max", pitch, g.builder.floats(LOWEST)))
    past = g.state(f"{name}.low.past", (1, 1, 0), axis=3, past=head.reach, rate=0)
    joined = g.join(past, in_line)
    here = g.op("Add", g.range(g.length(in_line, 3)), g.builder.ints(head.reach))
    added = []
    for periods, tap in enumerate(TAPS, start=1):
        before = g.op("Mul", period, g.builder.floats(periods))
        whole = g.op("Floor", before)
        right_at = g.op("Sub", here, g.op("Cast", whole, to=TensorProto.INT64))
        left_at = g.op("Sub", right_at, g.builder.ints(1))
        left, right = (g.op("GatherElements", joined, at, axis=3) for at in (left_at, right_at))
        between = g.op("Mul", g.op("Sub", before, whole), g.op("Sub", left, right))
        added.append(g.op("Mul", g.op("Sub", g.op("Add", right, between), in_line), g.builder.floats(tap)))
    added = g.op("Mul", g.op("Sum", *added), strength)
    return g.op("Add", wave, g.op("Reshape", added, g.builder.ints(0, 1, -1, head.hop)))


def _voice(g: StepGraph, x: str, name: str, head: CombHead) -> list[str]:
    """Pitch and the filter's strength at every sample, on lines between the ends of hops, [B, 1, 1, T * hop] each."""
    raw = g.builder.dense(x, f"{name}.source", head.source.weight, head.source.bias, exact=True)
    raw, voicing = (g.op("Sigmoid", part) for part in g.op("Split", raw, g.builder.ints(1, 1), count=2, axis=3))
    octaves = g.op("Mul", raw, g.builder.floats(math.log(HIGHEST / LOWEST)))
    pitch = g.op("Mul", g.op("Exp", octaves), g.builder.floats(LOWEST))
    ends = g.op("Concat", pitch, g.op("Mul", voicing, voicing), axis=1)  # [B, 2, T, 1]
    joined = g.join(g.state(f"{name}.source.past", (2, 0, 1), axis=2, past=1, rate=0), ends)
    starts = g.slice(joined, g.builder.ints(0), g.builder.ints(-1), 2)
    ramp = g.builder.weight(f"{name}.ramp", head.get_buffer("ramp"))
    lines = g.op("Add", starts, g.op("Mul", g.op("Sub", ends, starts), ramp))
    lines = g.op("Reshape", lines, g.builder.ints(0, 2, 1, -1))
    return g.op("Split", lines, g.builder.ints(1, 1), count=2, axis=1)


def decoder(g: StepGraph, x: str, module: Decoder, rate: int) -> str:
    """[B, 1, T, D] at `rate` frames a chunk -> [B, 1, T, hop]."""
    backbone, path = module.backbone, "decoder.backbone"
    conv = backbone.embedding
    x = dense_conv(g, x, f"{path}.embedding", conv.weight, conv.bias, 1, conv.replicate, exact=False)
    x = layer_norm(g, x, f"{path}.input_norm", backbone.input_norm)
    for index, layer in enumerate(backbone.layers):
        x = conv_next_block(g, x, f"{path}.layers.{index}", layer, rate)
    x = layer_norm(g, x, f"{path}.output_norm", backbone.output_norm)
    if isinstance(module.head, FourierHead):
        x = fourier_head(g, x, "decoder.head", module.head)
    else:
        x = linear(g, x, "decoder.head.proj", module.head.proj)
    return g.op("Clip", x, *(g.builder.constant(np.array(v, dtype=np.float32)) for v in (-1, 1)))
