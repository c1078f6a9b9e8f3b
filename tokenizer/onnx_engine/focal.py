"""FEATURES <-> LATENTS as nodes of a graph: `tokenizer.network.focal` for a step.

Legend: B batch, T frames, T' tokens, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenizer.network.focal import Compressor, Decompressor, FocalBlock, FocalModulation, Snake
from tokenizer.network.streaming import FrameUpscale
from tokenizer.onnx_engine.layers import FROM_CONV, TO_CONV, dense_conv, depthwise_conv, feed_forward, linear
from tokenizer.onnx_engine.state import StepGraph


def dynamic_tanh(g: StepGraph, x: str, name: str, layer: nn.Module) -> str:
    if isinstance(layer, nn.Identity):
        return x
    return g.op("Tanh", g.op("Mul", x, g.builder.weight(f"{name}.alpha", layer.alpha)))


def snake(g: StepGraph, x: str, name: str, layer: Snake) -> str:
    alpha = layer.alpha[:, 0]
    sine = g.op("Sin", g.op("Mul", x, g.builder.weight(f"{name}.alpha", alpha)))
    scaled = g.op("Mul", g.op("Mul", sine, sine), g.builder.weight(f"{name}.inverse", 1 / (alpha + 1e-9)))
    return g.op("Add", x, scaled)


def focal_modulation(g: StepGraph, x: str, name: str, layer: FocalModulation, rate: int, scale: Tensor | float) -> str:
    levels, dim = len(layer.layers), layer.dim
    parts = linear(g, x, f"{name}.in_proj", layer.in_proj)
    query, context, gates = g.op("Split", parts, g.builder.ints(dim, dim, levels), count=3, axis=3)
    context = g.op("Transpose", context, perm=TO_CONV)
    gates = g.op("Split", g.op("Transpose", gates, perm=TO_CONV), count=levels, axis=1, num_outputs=levels)
    gathered = ""
    for level, gate in enumerate(gates):
        context = g.op("Gelu", depthwise_conv(g, context, f"{name}.layers.{level}", layer.layers[level][0], rate))
        gated = g.op("Mul", context, gate)
        gathered = g.op("Add", gathered, gated) if gathered else gated
    gathered = g.op("Transpose", gathered, perm=FROM_CONV)
    projection = layer.context_proj
    weight = projection.weight.squeeze(-1) * layer.context_scale
    modulator = g.builder.dense(gathered, f"{name}.context_proj", weight, projection.bias)
    y = dynamic_tanh(g, g.op("Mul", query, modulator), f"{name}.norm", layer.norm)
    return linear(g, y, f"{name}.out_proj", layer.out_proj, scale)


def focal_block(g: StepGraph, x: str, name: str, block: FocalBlock, rate: int) -> str:
    """The layer scales are taken in the weights, but where a DynamicTanh comes between."""
    inside = [1.0, 1.0] if block.post_norm else [block.modulation_gamma, block.feed_forward_gamma]
    for part, part_scale in zip(("modulation", "feed_forward"), inside, strict=True):
        norm, gamma = getattr(block, f"{part}_norm"), getattr(block, f"{part}_gamma")
        y = x if block.post_norm else dynamic_tanh(g, x, f"{name}.{part}_norm", norm)
        if part == "modulation":
            y = focal_modulation(g, y, f"{name}.{part}", block.modulation, rate, part_scale)
        else:
            y = feed_forward(g, y, f"{name}.{part}", block.feed_forward, part_scale)
        if block.post_norm:
            y = dynamic_tanh(g, y, f"{name}.{part}_norm", norm)
            y = g.op("Mul", y, g.builder.weight(f"{name}.{part}_gamma", torch.as_tensor(gamma)))
        x = g.op("Add", x, y)
    return x


def compressor(g: StepGraph, x: str, module: Compressor, rate: int) -> str:
    """[B, 1, T, D] at `rate` frames a chunk -> latents [B, 1, T', bits]."""
    for index, layer in enumerate(module.layers):
        conv, path = layer.downscale.downscale, f"compressor.layers.{index}"
        rate //= conv.stride[0]
        name = f"{path}.downscale.downscale"
        x = dense_conv(g, x, name, conv.weight, conv.bias, conv.stride[0], conv.replicate, exact=False)
        x = snake(g, x, f"{path}.downscale.activation", layer.downscale.activation)
        x = focal_block(g, x, f"{path}.focal_block", layer.focal_block, rate)
    return linear(g, x, "compressor.out_proj", module.out_proj)


def decompressor(g: StepGraph, codes: str, present: str, module: Decompressor, rate: int) -> str:
    """codes [B, 1, T', bits] at `rate` a chunk, present float [B, 1, T', 1] -> [B, 1, T, D]."""
    x = linear(g, codes, "decompressor.in_proj", module.in_proj)
    for index, layer in enumerate(module.layers):
        path = f"decompressor.layers.{index}"
        x = focal_block(g, x, f"{path}.focal_block", layer.focal_block, rate)
        x = snake(g, x, f"{path}.upscale.activation", layer.upscale.activation)
        x = frame_upscale(g, x, f"{path}.upscale.upscale", layer.upscale.upscale)
        rate *= layer.upscale.upscale.stride[0]
    refiner, dim = module.refiner, module.layers[-1].upscale.upscale.out_channels
    by_token = g.op("Reshape", x, g.builder.ints(0, -1, module.upscale, dim))
    x = g.op("Mul", by_token, g.op("Transpose", present, perm=[0, 2, 1, 3]))
    if isinstance(refiner, nn.Identity):
        return g.op("Reshape", x, g.builder.ints(0, 1, -1, dim))
    flat = g.op("Reshape", x, g.builder.ints(0, 1, -1, refiner.chunk * dim))
    y = g.op("Gelu", linear(g, flat, "decompressor.refiner.in_proj", refiner.in_proj))
    refined = g.op("Add", flat, linear(g, y, "decompressor.refiner.out_proj", refiner.out_proj))
    return g.op("Reshape", refined, g.builder.ints(0, 1, -1, dim))


def frame_upscale(g: StepGraph, x: str, name: str, layer: FrameUpscale) -> str:
    weight = layer.weight.permute(2, 1, 0).flatten(0, 1)
    bias = None if layer.bias is None else layer.bias.repeat(layer.stride[0])
    y = g.builder.dense(x, name, weight, bias)
    return y if layer.stride[0] == 1 else g.op("Reshape", y, g.builder.ints(0, 1, -1, layer.out_channels))
