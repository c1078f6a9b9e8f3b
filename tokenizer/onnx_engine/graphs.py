"""A codec's `encode_step` and `decode_step` as ONNX graphs.

Legend: B batch, n chunks, T' tokens.
"""

from __future__ import annotations

from onnx import ModelProto, TensorProto

from tokenizer.model import CodecModel
from tokenizer.network.decoder import Decoder
from tokenizer.onnx_engine.decoder import decoder
from tokenizer.onnx_engine.encoder import encoder
from tokenizer.onnx_engine.focal import compressor, decompressor
from tokenizer.onnx_engine.kernels import Kernel
from tokenizer.onnx_engine.manifest import StateSpec
from tokenizer.onnx_engine.state import StepGraph


def encode_graph(codec: CodecModel, kernel: Kernel | None) -> tuple[ModelProto, list[StateSpec]]:
    """wave float32 [B, n * chunk_samples] -> tokens int64 [B, n * tokens_per_chunk]."""
    g = StepGraph(kernel)
    wave = g.builder.input("wave", TensorProto.FLOAT, ["batch", "samples"])
    features = encoder(g, wave, codec.encoder)
    latents = compressor(g, features, codec.compressor, codec.config.encoder.chunk_frames)
    bits = g.builder.constant(codec.quantizer.get_buffer("weights").numpy())
    values = g.op("Where", g.op("Greater", latents, g.builder.floats(0.0)), bits, g.builder.ints(0))
    tokens = g.builder.output("tokens", TensorProto.INT64, ["batch", "tokens"])
    g.op("ReduceSum", values, g.builder.ints(1, 3), keepdims=0, out=tokens)
    return g.builder.model("encode_step"), g.states


def decode_graph(codec: CodecModel, kernel: Kernel | None) -> tuple[ModelProto, list[StateSpec]]:
    """tokens int64 [B, n * tokens_per_chunk], -1 for none -> wave float32 [B, tokens * samples_per_token]."""
    g = StepGraph(kernel)
    tokens = g.builder.input("tokens", TensorProto.INT64, ["batch", "tokens"])
    zero, scale = g.builder.ints(0), codec.quantizer.scale
    token = g.op("Reshape", tokens, g.builder.ints(0, 1, -1, 1))
    present = g.op("Cast", g.op("GreaterOrEqual", token, zero), to=TensorProto.FLOAT)
    bits = g.builder.constant(codec.quantizer.get_buffer("weights").numpy())
    unset = g.op("Equal", g.op("BitwiseAnd", g.op("Max", token, zero), bits), zero)
    codes = g.op("Mul", g.op("Where", unset, g.builder.floats(-scale), g.builder.floats(scale)), present)
    features = decompressor(g, codes, present, codec.decompressor, codec.tokens_per_chunk)
    assert isinstance(codec.decoder, Decoder)  # `export` refuses codecs that do not stream
    samples = decoder(g, features, codec.decoder, codec.config.encoder.chunk_frames)
    by_token = g.op("Reshape", samples, g.builder.ints(0, 1, -1, codec.samples_per_token))
    wave = g.builder.output("wave", TensorProto.FLOAT, ["batch", "samples"])
    g.op("Reshape", g.op("Mul", by_token, present), g.builder.ints(0, -1), out=wave)
    return g.builder.model("decode_step"), g.states
