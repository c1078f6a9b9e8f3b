"""FEATURES -> WAVE as nodes of a graph: `tokenizer.network.decoder` for a step.

Legend: B batch, T frames, D channels.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from tokenizer.network.decoder import ConvNeXtBlock, Decoder
from tokenizer.network.fourier import FourierHead
from tokenizer.network.harmonic import FLOOR, HIGHEST, LOWEST, NEAR_PULSE, REACH, HarmonicHead
from tokenizer.onnx_engine.layers import FROM_CONV, TO_CONV, dense_conv, depthwise_conv, layer_norm, linear
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
    if isinstance(head, HarmonicHead):
        spectrum = voiced(g, x, spectrum, name, head)
    weight = head.get_buffer("basis").unflatten(1, (-1, head.hop)).permute(2, 0, 1).flip(2)
    return dense_conv(g, g.op("Concat", *spectrum, axis=3), name, weight, None, 1, replicate=False, exact=True)


def voiced(g: StepGraph, x: str, direct: list[str], name: str, head: HarmonicHead) -> list[str]:
    """`HarmonicHead`: real and imaginary parts of the spectrum, of which the lower have given way to harmonics. Its
    products keep float32 in an 8-bit graph."""
    sizes = g.builder.ints(head.bins, head.n_fft // 2 + 1 - head.bins)
    (real, real_above), (imaginary, imaginary_above) = (g.op("Split", part, sizes, count=2, axis=3) for part in direct)
    parts = g.builder.dense(x, f"{name}.source", head.source.weight, head.source.bias, exact=True)
    raw, voicing, *at_knots = g.op("Split", parts, g.builder.ints(1, 1, *[head.knots] * 3), count=5, axis=3)
    between = g.builder.weight(f"{name}.between", head.get_buffer("between"))
    share, gain, turned = (g.op("MatMul", part, between) for part in at_knots)
    share = g.op("Sigmoid", g.op("Add", share, voicing))
    power = g.op("Add", g.op("Mul", real, real), g.op("Mul", imaginary, imaginary))
    power = g.builder.dense(power, f"{name}.smooth", head.get_buffer("smooth").T, exact=True)
    envelope = g.op("Sqrt", g.op("Add", power, g.builder.floats(FLOOR)))
    gain = g.op("Exp", g.op("Min", gain, g.builder.floats(head.max_log_magnitude)))
    size = g.op("Mul", g.op("Mul", share, envelope), gain)
    cosine, sine = (g.op("Mul", size, g.op(kind, turned)) for kind in ("Cos", "Sin"))
    octaves = g.op("Mul", g.op("Sigmoid", raw), g.builder.floats(math.log(HIGHEST / LOWEST)))
    pitch = g.op("Mul", g.op("Exp", octaves), g.builder.floats(LOWEST))
    source, transform = _harmonics(g, pitch, _phase(g, pitch, name), name, head), head.get_buffer("transform")
    source = g.builder.dense(source, f"{name}.transform", transform.T, exact=True)
    source_real, source_imaginary = g.op("Split", source, g.builder.ints(head.bins, head.bins), count=2, axis=3)
    voice_real = g.op("Sub", g.op("Mul", source_real, cosine), g.op("Mul", source_imaginary, sine))
    voice_imaginary = g.op("Add", g.op("Mul", source_real, sine), g.op("Mul", source_imaginary, cosine))
    kept = g.op("Sub", g.builder.floats(1.0), share)
    real = g.op("Add", g.op("Mul", kept, real), voice_real)
    imaginary = g.op("Add", g.op("Mul", kept, imaginary), voice_imaginary)
    return [real, real_above, imaginary, imaginary_above]


def _phase(g: StepGraph, pitch: str, name: str) -> str:
    """Turns at the middle of each frame, [B, 1, T, 1], added up in float64 as in `HarmonicHead.step`."""
    state = g.state(f"{name}.pitch.past", (1, 0, 1), axis=2, past=1, rate=0)
    joined = g.join(state, pitch)
    before = g.slice(joined, g.builder.ints(0), g.builder.ints(-1), 2)
    steps = g.op("Mul", g.op("Add", before, pitch), g.builder.floats(0.5))
    axis = g.builder.constant(np.array(2, dtype=np.int64))
    added = g.op("CumSum", g.op("Cast", steps, to=TensorProto.DOUBLE), axis)
    state = g.state(f"{name}.phase.past", (1, 0, 1), axis=2, past=1, rate=0)
    turns = g.op("Add", added, g.op("Cast", state.name, to=TensorProto.DOUBLE))
    phase = g.op("Cast", g.op("Sub", turns, g.op("Floor", turns)), to=TensorProto.FLOAT)
    g.join(state, phase)
    return phase


def _harmonics(g: StepGraph, pitch: str, phase: str, name: str, head: HarmonicHead) -> str:
    """`tokenizer.network.harmonic.harmonics`, [B, 1, T, N]."""
    time = g.builder.weight(f"{name}.time", head.get_buffer("time"))
    turns = g.op("Add", phase, g.op("Mul", pitch, time))
    angle = g.op("Mul", g.op("Sub", turns, g.op("Round", turns)), g.builder.floats(math.pi))
    count = g.op("Floor", g.op("Div", g.builder.floats(REACH), pitch))
    both = g.op("Add", g.op("Mul", count, g.builder.floats(2.0)), g.builder.floats(1.0))
    sine = g.op("Sin", angle)
    at_pulse = g.op("Less", g.op("Abs", sine), g.builder.floats(NEAR_PULSE))
    ratio = g.op("Div", g.op("Sin", g.op("Mul", both, angle)), g.op("Where", at_pulse, g.builder.floats(1.0), sine))
    total = g.op("Sub", g.op("Where", at_pulse, both, ratio), g.builder.floats(1.0))
    return g.op("Mul", total, g.op("Sqrt", g.op("Div", g.builder.floats(0.5), count)))


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
