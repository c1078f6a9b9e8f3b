"""The language model in generation: a rolling cache, `prefill` and `decode_one_token`.

    weights, cache = DecodingWeights(model), make_cache(model, batch=B)
    logits = prefill(weights, prompts, lengths, cache)
    logits = decode_one_token(weights, token, cache)      # repeatedly

`LanguageModel.forward` computes whole rows with gradients and without a cache. This module computes the same function
of the same weights (the tests compare them) for few tokens at a time, where reading weights and launching operations
dominate the cost. So matrices that read the same vector are concatenated, the norms' gains are multiplied into them,
and queries that share a key head attend together. Attention always reads all slots: if the number of slots depended on
the other streams, so would the rounding of a stream's sums.

Dimension letters:  B batch    T tokens of this call    C cache slots    V vocabulary    D width    F feed-forward width
                    N layers   H query heads            G key/value heads               R = H / G  K head width
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slm.model.transformer import LanguageModel, Layer, rotary_angles, rotate


class Cache(NamedTuple):
    """The state of B generating streams. `prefill` and `decode_one_token` write into these tensors in place.

    The token at position p is in slot p mod C, so the cache rolls and never grows. The position that a slot holds
    follows from `position` alone. C is the context plus the longest write minus one, so that writing several tokens
    does not evict keys that the first of them still sees. One extra slot, the last, takes the padding of prompts of
    different lengths and is never read.
    """

    keys: Tensor  # [B, N, G, C + 1, K], rotated
    values: Tensor  # [B, N, G, C + 1, K]
    position: Tensor  # [B] int64: tokens that each stream has processed

    @property
    def capacity(self) -> int:
        """C, the number of readable slots."""
        return self.keys.shape[3] - 1


def make_cache(model: LanguageModel, batch: int, longest_write: int = 128) -> Cache:
    """An empty cache for `batch` streams and writes of at most `longest_write` tokens."""
    config, weight = model.config, model.embed_tokens.weight
    capacity = config.context + longest_write - 1
    shape = (batch, config.layers, config.kv_heads, capacity + 1, config.head_width)
    return Cache(
        keys=torch.zeros(shape, dtype=weight.dtype, device=weight.device),
        values=torch.zeros(shape, dtype=weight.dtype, device=weight.device),
        position=torch.zeros(batch, dtype=torch.int64, device=weight.device),
    )


class LayerWeights(NamedTuple):
    """The matrices of one layer, for `x @ matrix`; `qkv` and `gate_up` include the norms' gains."""

    qkv: Tensor  # [D, (H + 2 G) K]
    out: Tensor  # [H K, D]
    gate_up: Tensor  # [D, 2 F]
    down: Tensor  # [F, D]

    @classmethod
    def of(cls, layer: nn.Module) -> LayerWeights:
        assert isinstance(layer, Layer)
        attention, mlp = layer.self_attn, layer.mlp
        qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        qkv, gate_up = qkv * layer.input_layernorm.weight, gate_up * layer.post_attention_layernorm.weight
        joined = (qkv, attention.o_proj.weight, gate_up, mlp.down_proj.weight)
        return cls(*(matrix.t().contiguous() for matrix in joined))


class DecodingWeights:
    """A model's weights in the layout that generation reads.

    Args:
        model: its layers' weights are copied at the time of the call; embeddings and head are shared.
    """

    @torch.no_grad()
    def __init__(self, model: LanguageModel) -> None:
        self.config, self.embed_tokens, self.norm, self.lm_head = (
            model.config,
            model.embed_tokens,
            model.norm,
            model.lm_head,
        )
        self.layers = [LayerWeights.of(layer) for layer in model.layers]

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device


@torch.no_grad()
def prefill(weights: DecodingWeights, tokens: Tensor, lengths: Tensor, cache: Cache) -> Tensor:
    """Process prompts of any length, in blocks that fit the cache.

    Args:
        weights: of the model.
        tokens: [B, T] int64 ids; row b is padded with any valid ids from lengths[b] on.
        lengths: [B] int64, each at least 1.
        cache: written in place.

    Returns:
        [B, V] logits of the token after the last real token of each row.
    """
    block = cache.capacity - weights.config.context + 1
    last_hidden = cache.keys.new_zeros(tokens.shape[0], weights.config.width)
    for start in range(0, tokens.shape[1], block):
        piece = tokens[:, start : start + block]
        hidden = _take_in(weights, piece, (lengths - start).clamp(0, piece.shape[1]), cache)
        at = lengths - 1 - start
        ends_here = (at >= 0) & (at < piece.shape[1])
        last_hidden[ends_here] = hidden[ends_here, at[ends_here]]
    return weights.lm_head(last_hidden)


@torch.no_grad()
def decode_one_token(weights: DecodingWeights, token: Tensor, cache: Cache, live: Tensor | None = None) -> Tensor:
    """Process one token of each stream: token [B] int64 -> [B, V] logits of the next. The cache is written in place.

    Rows that are not `live` [B] bool do not advance, and their logits are undefined. None: all rows are live.
    """
    counts = torch.ones_like(token) if live is None else live.long()
    return weights.lm_head(_take_in(weights, token[:, None], counts, cache)[:, 0])


@torch.no_grad()
def decode_block(weights: DecodingWeights, tokens: Tensor, cache: Cache) -> Tensor:
    """Process T tokens of each stream, at most the longest write: [B, T] int64 -> [B, T, V] logits after each."""
    return weights.lm_head(_take_in(weights, tokens, torch.full_like(tokens[:, 0], tokens.shape[1]), cache))


def _take_in(weights: DecodingWeights, tokens: Tensor, counts: Tensor, cache: Cache) -> Tensor:
    """Write the first counts[b] tokens [B, T] of each row to the cache. Returns all hidden states [B, T, D]."""
    config, capacity, (batch, count) = weights.config, cache.capacity, tokens.shape
    assert count <= capacity - config.context + 1, "this write would evict keys that its first token sees"
    heads, groups, width = config.heads, config.kv_heads, config.head_width
    steps = torch.arange(count, device=tokens.device)
    positions = cache.position[:, None] + steps
    visible = _visible(positions, counts, cache, config.context)
    visible = visible[:, :, None].expand(-1, -1, heads // groups, -1).reshape(batch, 1, -1, capacity)  # [B, 1, T R, C]
    rows, target = torch.arange(batch, device=tokens.device)[:, None], positions % capacity
    target = torch.where(steps < counts[:, None], target, capacity)
    x = weights.embed_tokens(tokens)
    cosine, sine = (part[:, 0, :, None] for part in rotary_angles(positions, width, config.rope_theta, x.dtype))
    for index, layer in enumerate(weights.layers):
        keys, values = cache.keys[:, index], cache.values[:, index]
        qkv = (_scaled(x, config.norm_eps) @ layer.qkv).view(batch, count, -1, width)
        query, key = rotate(qkv[:, :, : heads + groups], cosine, sine).split((heads, groups), dim=2)
        keys[rows, :, target], values[rows, :, target] = key, qkv[:, :, heads + groups :]
        query = query.unflatten(2, (groups, -1)).permute(0, 2, 1, 3, 4).flatten(2, 3)  # [B, G, T R, K]
        mixed = F.scaled_dot_product_attention(query, keys[:, :, :-1], values[:, :, :-1], attn_mask=visible)
        mixed = mixed.unflatten(2, (count, -1)).permute(0, 2, 1, 3, 4)  # [B, T, G, R, K]
        x = x + mixed.reshape(batch, count, -1) @ layer.out
        gate, up = (_scaled(x, config.norm_eps) @ layer.gate_up).chunk(2, dim=-1)
        x = x + (F.silu(gate) * up) @ layer.down
    cache.position.add_(counts)
    return weights.norm(x)


def _visible(positions: Tensor, counts: Tensor, cache: Cache, context: int) -> Tensor:
    """Which slots each token sees: bool [B, T, C]."""
    last, slots = (cache.position + counts - 1)[:, None], torch.arange(cache.capacity, device=positions.device)
    held = last - (last - slots) % cache.capacity  # the position in each slot
    # A padding token sees what the last real token sees: attention over nothing would be NaN.
    behind = torch.minimum(positions, last)[:, :, None] - held[:, None, :]
    return (held >= 0)[:, None, :] & (behind >= 0) & (behind < context)


def _scaled(x: Tensor, eps: float) -> Tensor:
    """RMSNorm without its gain, over the last axis."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
