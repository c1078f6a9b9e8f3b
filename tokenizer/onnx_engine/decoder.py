"""FEATURES -> WAVE as nodes of a graph: `tokenizer.network.decoder` for a step.

Legend: B batch, T frames, D channels.
"""

from __future__ import annotations

import numpy as np

from tokenizer.network.decoder import ConvNeXtBlock, Decoder, FourierHead
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
    cosine, sine = (g.op("Mul", magnitude, g.op(kind, phase)) for kind in ("Cos", "Sin"))
    spectrum = g.op("Concat", cosine, sine, axis=3)
    weight = head.get_buffer("basis").unflatten(1, (-1, head.hop)).permute(2, 0, 1).flip(2)
    return dense_conv(g, spectrum, name, weight, None, stride=1, replicate=False, exact=True)


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
