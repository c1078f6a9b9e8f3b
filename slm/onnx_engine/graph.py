"""A language model's step as an ONNX graph: `slm.model.decoding` with its bookkeeping left to the caller.

What depends on positions alone (which slots are written and seen, the angles of the rotation) are inputs, computed by
`slm.onnx_engine.arrays`; what reads weights is here. A step writes its keys and values into the caches in place where
input and output are bound to the same memory.

Dimension letters:  B batch    T tokens of a step    S cache slots, the padding slot included    V vocabulary    D width
                    H query heads    G key/value heads    R = H / G    K head width    N rows    P values so far
"""

from __future__ import annotations

import torch
from onnx import ModelProto, TensorProto
from torch import Tensor

from slm.model.code_bits import BitGroupHead
from slm.model.decoding import DecodingWeights, LayerWeights
from slm.vocabulary import FIRST_CODE
from tokenizer.onnx_engine.builder import CONTRIB, GraphBuilder
from tokenizer.onnx_engine.kernels import Kernel


@torch.no_grad()
def step_graph(weights: DecodingWeights, vocabulary_size: int, kernel: Kernel | None) -> ModelProto:
    """The graph of one step.

    Inputs: `ids` int64 [B, T]; `angles` int64 [B, T], rows of `cosine` and `sine` float32 [any, K / 2]; `target` int64
    [B, G, T, K], the slot that each key is written to; `seen` float32 [B, 1, T R or 1, S], 0 or -inf; `last` int64 [B],
    the token whose logits are wanted; `keys.N` float32 [B, G, K, S] and `values.N` [B, G, S, K] of layer N.

    Outputs: `logits` float32 [B, V]; `next.keys.N` and `next.values.N`.
    """
    config, g = weights.config, GraphBuilder(kernel)
    ids = g.input("ids", TensorProto.INT64, ["batch", "tokens"])
    g.input("angles", TensorProto.INT64, ["batch", "tokens"])
    for name in ("cosine", "sine"):
        g.input(name, TensorProto.FLOAT, ["angles", config.head_width // 2])
    g.input("target", TensorProto.INT64, ["batch", config.kv_heads, "tokens", config.head_width])
    g.input("seen", TensorProto.FLOAT, ["batch", 1, "queries", "slots"])
    last = g.input("last", TensorProto.INT64, ["batch"])
    table = weights.embed_tokens(torch.arange(vocabulary_size, device=weights.device))
    x = g.op("Gather", g.weight("embed_tokens", table.cpu()), ids)
    target_keys = g.op("Transpose", "target", perm=[0, 1, 3, 2])
    for index, layer in enumerate(weights.layers):
        x = _layer(g, x, index, layer, weights, target_keys)
    x = _norm(g, x, "norm", weights.norm.weight, config.norm_eps)
    x = g.op("GatherND", x, g.op("Unsqueeze", last, g.ints(1)), batch_dims=1)  # [B, D]
    logits = g.output("logits", TensorProto.FLOAT, ["batch", vocabulary_size])
    if isinstance(weights.lm_head, BitGroupHead):
        _bit_group_head(g, x, weights.lm_head, logits)
    else:
        g.op("Identity", g.dense(x, "lm_head", weights.lm_head.weight.cpu()), out=logits)
    return g.model("step")


def _layer(g: GraphBuilder, x: str, index: int, layer: LayerWeights, weights: DecodingWeights, target_keys: str) -> str:
    config, path = weights.config, f"layers.{index}"
    heads, groups, width = config.heads, config.kv_heads, config.head_width
    # The scale of the scores is taken in the queries' weights: rotation is linear.
    scale = torch.ones(layer.qkv.shape[1])
    scale[: heads * width] = width**-0.5
    normed = _norm(g, x, f"{path}.input_norm", torch.ones(config.width), config.norm_eps)
    qkv = _times(g, normed, f"{path}.qkv", layer.qkv.cpu() * scale)
    rotating, value = g.op("Split", qkv, g.ints((heads + groups) * width, groups * width), count=2, axis=2)
    rotated = g.op("RotaryEmbedding", rotating, "angles", "cosine", "sine", domain=CONTRIB, num_heads=heads + groups)
    query, key = g.op("Split", rotated, g.ints(heads * width, groups * width), count=2, axis=2)
    key = g.op("Transpose", g.op("Reshape", key, g.ints(0, 0, groups, width)), perm=[0, 2, 3, 1])  # [B, G, K, T]
    value = g.op("Transpose", g.op("Reshape", value, g.ints(0, 0, groups, width)), perm=[0, 2, 1, 3])
    keys = _written(g, f"keys.{index}", key, target_keys, 3, ["batch", groups, width, "slots"])
    values = _written(g, f"values.{index}", value, "target", 2, ["batch", groups, "slots", width])
    if groups > 1:
        query = g.op("Reshape", query, g.ints(0, 0, groups, -1, width))
        query = g.op("Transpose", query, perm=[0, 2, 1, 3, 4])
    query = g.op("Reshape", query, g.ints(0, groups, -1, width))  # [B, G, T R, K]
    scores = g.op("Softmax", g.op("Add", g.op("MatMul", query, keys), "seen"), axis=-1)
    mixed = g.op("MatMul", scores, values)
    if groups > 1:
        mixed = g.op("Reshape", mixed, g.ints(0, 0, -1, heads // groups, width))
        mixed = g.op("Transpose", mixed, perm=[0, 2, 1, 3, 4])
    mixed = g.op("Reshape", mixed, g.ints(0, -1, heads * width))
    x = g.op("Add", x, _times(g, mixed, f"{path}.out", layer.out.cpu()))
    normed = _norm(g, x, f"{path}.feed_forward_norm", torch.ones(config.width), config.norm_eps)
    gate_up = _times(g, normed, f"{path}.gate_up", layer.gate_up.cpu())
    gate, up = g.op("Split", gate_up, count=2, axis=2, num_outputs=2)
    gated = g.op("Mul", g.op("QuickGelu", gate, domain=CONTRIB, alpha=1.0), up)  # with this alpha: SiLU
    return g.op("Add", x, _times(g, gated, f"{path}.down", layer.down.cpu()))


def _times(g: GraphBuilder, x: str, name: str, matrix: Tensor) -> str:
    """x [B, T, K] times matrix [K, N]."""
    return g.dense(x, name, matrix.t())


def _norm(g: GraphBuilder, x: str, name: str, gain: Tensor, eps: float) -> str:
    """RMSNorm over the last axis."""
    return g.op("SimplifiedLayerNormalization", x, g.weight(name, gain.cpu()), axis=-1, epsilon=eps, stash_type=1)


def _written(g: GraphBuilder, name: str, new: str, target: str, axis: int, shape: list[int | str]) -> str:
    """The cache `name` with `new` at the slots `target`."""
    g.input(name, TensorProto.FLOAT, shape)
    following = g.output(f"next.{name}", TensorProto.FLOAT, shape)
    return g.op("ScatterElements", name, target, new, axis=axis, out=following)


def _bit_group_head(g: GraphBuilder, hidden: str, head: BitGroupHead, logits: str) -> None:
    """`BitGroupHead.forward` of hidden [B, D]; what earlier groups add is the same for all rows, and made here."""
    known = g.op("LogSoftmax", g.dense(hidden, "lm_head.first", head.first.weight), axis=-1)
    values = 2 ** head.sizes[0]
    rest = head.first.weight.shape[0] - FIRST_CODE - values
    special, known, pieces = g.op("Split", known, g.ints(FIRST_CODE, values, rest), count=3, axis=1)
    said = torch.zeros(1, head.first.weight.shape[1])
    for index, (mix, table, last) in enumerate(zip(head.mix, head.said, head.rest, strict=True)):
        said = (said[:, None] + table.get_parameter("weight")).flatten(0, 1)  # [P, D]
        mixed = g.op("Unsqueeze", g.dense(hidden, f"lm_head.mix.{index}", mix.get_parameter("weight")), g.ints(1))
        active = g.op(
            "QuickGelu", g.op("Add", mixed, g.weight(f"lm_head.said.{index}", said)), domain=CONTRIB, alpha=1.0
        )
        new = g.dense(active, f"lm_head.rest.{index}", last.get_parameter("weight"))
        new = g.op("LogSoftmax", new, axis=-1)  # [B, P, values of this group]
        known = g.op("Flatten", g.op("Add", g.op("Unsqueeze", known, g.ints(2)), new), axis=1)
    g.op("Concat", special, known, pieces, axis=1, out=logits)
