"""WAVE -> FEATURES as nodes of a graph: `tokenizer.network.encoder` for a step.

Legend: B batch, T new frames, P keys, of which T are new, D channels, H heads.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from tokenizer.network.attention import RelativeBias
from tokenizer.network.encoder import ConvStem, Encoder, LogMelStem, TransformerEncoder, TransformerLayer
from tokenizer.onnx_engine.layers import dense_conv, feed_forward, grouped_conv, layer_norm, linear
from tokenizer.onnx_engine.manifest import StateSpec
from tokenizer.onnx_engine.state import StepGraph


def conv_stem(g: StepGraph, wave: str, name: str, stem: ConvStem) -> str:
    x = g.op("Reshape", wave, g.builder.ints(0, 1, -1, 1))
    for index, layer in enumerate(stem.layers):
        path = f"{name}.layers.{index}"
        conv = layer.conv
        x = dense_conv(g, x, f"{path}.conv", conv.weight, conv.bias, conv.stride[0], conv.replicate, exact=False)
        x = g.op("Gelu", layer_norm(g, x, f"{path}.norm", layer.norm))
    return x


def log_mel_stem(g: StepGraph, wave: str, name: str, stem: LogMelStem) -> str:
    """The spectrum as a convolution over hops; a window that is no whole number of hops is filled up with zeros."""
    basis, mels = stem.get_buffer("basis"), stem.get_buffer("mels")
    basis = nn.functional.pad(basis, (0, 0, -stem.window % stem.hop, 0))
    x = g.op("Reshape", wave, g.builder.ints(0, 1, -1, stem.hop))
    weight = basis.unflatten(0, (-1, stem.hop)).permute(2, 1, 0)
    spectrum = dense_conv(g, x, name, weight, None, stride=1, replicate=False, exact=True)
    power = g.op("Mul", spectrum, spectrum)
    energies = g.builder.dense(power, f"{name}.mels", torch.cat([mels, mels]).T, exact=True)
    logmel = g.op("Log", g.op("Add", energies, g.builder.floats(stem.floor)))
    return g.op("Reshape", logmel, g.builder.ints(0, 1, -1, stem.sub_frames * mels.shape[1]))


def position_bias(g: StepGraph, spec: StateSpec, x: str, keys: str, encoder: TransformerEncoder) -> tuple[str, str]:
    """The relative bias [H, T, P] and the mask [B, 1, T, P] (0 or -inf) of a step over P = slots of `keys`."""
    chunk, window, builder = encoder.chunk, encoder.window, g.builder
    by_distance = _bias_by_distance(encoder.relative_embedding, chunk, window)
    first = g.first(spec.past, spec.rate) if spec.history else builder.ints(spec.past)
    query = g.op("Unsqueeze", g.range(g.length(x, 2)), builder.ints(1))
    key = g.op("Sub", g.range(g.length(keys, 2)), first)  # in frames from the step's first
    end = g.op("Mul", g.op("Add", g.op("Div", query, builder.ints(chunk)), builder.ints(1)), builder.ints(chunk))
    reachable = g.op("And", g.op("Less", key, end), g.op("GreaterOrEqual", key, g.op("Sub", end, builder.ints(window))))
    begun = g.by_stream(g.op("Mul", g.position, builder.ints(-spec.rate)))
    seen = g.op("And", reachable, g.op("GreaterOrEqual", key, begun))
    mask = g.op("Where", seen, builder.floats(0.0), builder.floats(-np.inf))
    distance = g.op("Add", g.op("Sub", key, query), builder.ints(window - 1))
    distance = g.op("Clip", distance, *(builder.constant(np.array(v)) for v in (0, by_distance.shape[1] - 1)))
    return g.op("Gather", builder.weight("relative_bias", by_distance), distance, axis=1), mask


def _bias_by_distance(layer: RelativeBias, chunk: int, window: int) -> Tensor:
    """[H, window + chunk - 1], the bias at distances from 1 - window to chunk - 1."""
    return layer.weight[layer.buckets(torch.arange(1 - window, chunk))].T


def transformer_layer(
    g: StepGraph, x: str, name: str, layer: TransformerLayer, shared: list[str], encoder: TransformerEncoder
) -> str:
    attention = layer.attention
    heads, size, dim = attention.num_heads, attention.head_dim, attention.out_proj.in_features
    builder, path = g.builder, f"{name}.attention"
    normed = layer_norm(g, x, f"{name}.attention_norm", layer.attention_norm)
    # The gates are one more part of the product that makes queries, keys and values; sums of four are taken in the
    # weights, and so is the scale of the queries.
    gate = attention.gru_rel_pos_linear
    gate_weight, gate_bias = gate.weight.unflatten(0, (2, 4)).sum(1), gate.bias.unflatten(0, (2, 4)).sum(1)
    by_head = torch.stack([torch.block_diag(*[row[None]] * heads) for row in gate_weight]).flatten(0, 1)
    scale = torch.ones(3 * dim, 1)
    scale[:dim] = size**-0.5
    weight = torch.cat([attention.qkv_proj.weight * scale, by_head])
    bias = torch.cat([attention.qkv_proj.bias * scale[:, 0], gate_bias.repeat_interleave(heads)])
    parts = builder.dense(normed, f"{path}.qkv_proj", weight, bias)
    q, k, v, gates = g.op("Split", parts, builder.ints(dim, dim, dim, 2 * heads), count=4, axis=3)
    split = builder.ints(0, -1, heads, size)
    q, k, v = (g.op("Transpose", g.op("Reshape", part, split), perm=[0, 2, 1, 3]) for part in (q, k, v))
    keys_state = g.state(f"{path}.keys", (heads, 0, size), axis=2, past=encoder.past, rate=encoder.chunk)
    values_state = g.state(f"{path}.values", (heads, 0, size), axis=2, past=encoder.past, rate=encoder.chunk)
    keys, values = g.join(keys_state, k), g.join(values_state, v)
    if not shared:
        shared += position_bias(g, keys_state, x, keys, encoder)
    relative, mask = shared
    update, reset = g.op("Split", g.op("Sigmoid", gates), count=2, axis=3, num_outputs=2)
    constant = builder.weight(f"{path}.gru_rel_pos_const", attention.gru_rel_pos_const.flatten())
    closed = g.op("Sub", g.op("Mul", reset, constant), builder.floats(1.0))
    gate_value = g.op("Add", g.op("Mul", update, closed), builder.floats(2.0))  # [B, 1, T, H]
    by_query = g.op("Transpose", gate_value, perm=[0, 3, 2, 1])
    added = g.op("Add", g.op("Mul", by_query, relative), mask)
    products = g.op("MatMul", q, g.op("Transpose", keys, perm=[0, 1, 3, 2]))  # the runtime makes one node of the two
    scores = g.op("Softmax", g.op("Add", products, added), axis=-1)
    y = g.op("Transpose", g.op("MatMul", scores, values), perm=[0, 2, 1, 3])
    y = g.op("Reshape", y, builder.ints(0, 1, -1, dim))
    x = g.op("Add", x, linear(g, y, f"{path}.out_proj", attention.out_proj))
    normed = layer_norm(g, x, f"{name}.feed_forward_norm", layer.feed_forward_norm)
    return g.op("Add", x, feed_forward(g, normed, f"{name}.feed_forward", layer.feed_forward))


def transformer(g: StepGraph, x: str, name: str, encoder: TransformerEncoder) -> str:
    conv, path = encoder.positional_embedding.conv, f"{name}.positional_embedding.conv"
    x = g.op("Add", x, g.op("Gelu", grouped_conv(g, x, path, conv, encoder.chunk)))
    shared: list[str] = []  # bias and mask, made by the first layer
    for index, layer in enumerate(encoder.layers):
        x = transformer_layer(g, x, f"{name}.layers.{index}", layer, shared, encoder)
    return x


def encoder(g: StepGraph, wave: str, module: Encoder) -> str:
    """[B, S] -> [B, 1, T, D]."""
    stem, path = module.feature_extractor, "encoder.feature_extractor"
    x = conv_stem(g, wave, path, stem) if isinstance(stem, ConvStem) else log_mel_stem(g, wave, path, stem)
    # In silence all bands of a log-mel frame are equal and far from 0. ONNX Runtime before 1.27 computes the variance
    # as a difference of two large numbers, which rounding can make negative: NaN. So the mean is taken off before.
    x = g.op("Sub", x, g.op("ReduceMean", x, g.builder.ints(-1), keepdims=1))
    x = linear(g, layer_norm(g, x, "encoder.norm", module.norm), "encoder.feature_proj", module.feature_proj)
    return transformer(g, x, "encoder.encoder", module.encoder)
