"""Self-attention with WavLM's gated relative position bias: chunked and causal for streams, full for whole utterances.

Legend: B batch, T new frames, W cached frames, K = W + T keys, D channels, H heads, N channels a head.

In the causal form a frame attends to the keys in [end - window, end), where `end` is the end of its own chunk, so
frames of one chunk see one another (the lookahead) and nothing later. Bias and gate: WavLM, arXiv 2110.13900, section
3.2; chunked attention: FocalCodec-Stream, arXiv 2509.16195.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.network.padding import present

SCORES = 1 << 24  # attention scores of one block of queries, over batch and heads: 64 MB in float32


class KVState(NamedTuple):
    """The last W keys and values of a layer, each [B, H, W, N]; slots not yet filled are masked by position."""

    keys: Tensor
    values: Tensor


class GatedAttention(nn.Module):
    """Multi-head attention whose additive position bias is scaled by a gate computed from each query's input."""

    State = KVState

    def __init__(self, dim: int, num_heads: int, past: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.past = past  # cached frames: window minus one chunk
        self.dropout = dropout
        self.qkv_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        self.gru_rel_pos_linear = nn.Linear(self.head_dim, 8)
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, num_heads, 1, 1))

    def init_state(self, batch: int) -> KVState:
        empty = self.qkv_proj.weight.new_zeros(batch, self.num_heads, self.past, self.head_dim)
        return KVState(empty, empty.clone())

    def step(self, x: Tensor, bias: Tensor, mask: Tensor, state: KVState) -> tuple[Tensor, KVState]:
        """Attend from the new frames.

        Args:
            x: [B, T, D] new frames.
            bias: [H, T, K] relative position bias.
            mask: [B, 1, T, K] additive, 0 where a key may be seen and -inf elsewhere.

        Returns:
            [B, T, D] and the state with the new keys in it.
        """
        q, k, v = self._project(x)
        keys = torch.cat([state.keys.to(k.dtype), k], dim=2)
        values = torch.cat([state.values.to(v.dtype), v], dim=2)
        scores_bias = (self._gate(x) * bias + mask).to(q.dtype)
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=scores_bias, dropout_p=self._dropout)
        kept = keys.shape[2] - self.past
        next_state = KVState(keys[:, :, kept:], values[:, :, kept:])
        return self.out_proj(y.transpose(1, 2).flatten(2)), next_state

    @property
    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0

    def _project(self, x: Tensor) -> Tensor:
        """[B, T, D] -> queries, keys and values [3, B, H, T, N]."""
        return self.qkv_proj(x).view(*x.shape[:2], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)

    def _gate(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T, 1]."""
        heads = x.view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)
        update, reset = self.gru_rel_pos_linear(heads).unflatten(-1, (2, 4)).sum(-1).sigmoid().chunk(2, dim=-1)
        return update * (reset * self.gru_rel_pos_const - 1.0) + 2.0


class FullAttention(GatedAttention):
    """The same attention with the whole utterance in view.

    Queries go in blocks, so memory grows with the utterance's length and not with its square.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__(dim, num_heads, past=0, dropout=dropout)

    def forward(self, x: Tensor, relative: RelativeBias, lengths: Tensor) -> Tensor:
        """Attend from every frame to every frame within its row's length.

        Args:
            x: [B, T, D].
            relative: the bias by distance.
            lengths: int64 [B], frames of each row that count, at least 1.

        Returns:
            [B, T, D]; what lies beyond a row's length means nothing.
        """
        frames = x.shape[1]
        q, k, v = self._project(x)
        gate = self._gate(x)
        unseen = ~present(lengths, frames)[:, None, None]
        block = max(1, SCORES // (gate.shape[0] * self.num_heads * frames))
        pieces = []
        for start in range(0, frames, block):
            stop = min(start + block, frames)
            bias = gate[:, :, start:stop] * relative(stop - start, past=start, ahead=frames - stop)
            mask = bias.masked_fill_(unseen, -torch.inf).to(q.dtype)
            pieces.append(
                F.scaled_dot_product_attention(q[:, :, start:stop], k, v, attn_mask=mask, dropout_p=self._dropout)
            )
        return self.out_proj(torch.cat(pieces, dim=2).transpose(1, 2).flatten(2))


class RelativeBias(nn.Embedding):
    """A learned bias for each head and bucket of key-minus-query distance, shared by all layers.

    Half of the buckets serve keys that lie ahead. In each half, small distances have a bucket each and larger ones
    share buckets of logarithmic width up to `max_distance` (T5, arXiv 1910.10683, section 2.1).
    """

    def __init__(self, num_buckets: int, num_heads: int, max_distance: int) -> None:
        super().__init__(num_buckets, num_heads)
        self.max_distance = max_distance

    def forward(self, frames: int, past: int, ahead: int = 0) -> Tensor:  # type: ignore[override]
        """The bias [H, frames, past + frames + ahead] of `frames` queries over the keys before, at and after them."""
        reach = past + frames - 1
        distance = torch.arange(-reach, frames + ahead, device=self.weight.device)
        by_distance = super().forward(self.buckets(distance))  # [reach + frames + ahead, H]
        # Query t sees distance j - past - t at key j: row t is a window that starts t entries earlier than row 0.
        return by_distance.unfold(0, past + frames + ahead, 1).flip(0).permute(1, 0, 2)

    def buckets(self, distance: Tensor) -> Tensor:
        """Bucket numbers of signed distances in frames, int64, any shape."""
        half = self.num_embeddings // 2
        exact = half // 2
        size = distance.abs()
        growth = torch.log(size.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        large = (exact + growth * (half - exact)).long().clamp(max=half - 1)
        return torch.where(size < exact, size, large) + (distance > 0).long() * half


def chunk_mask(frames: int, past: int, chunk: int, window: int, position: Tensor) -> Tensor:
    """Which keys the queries of a step may see.

    Args:
        frames: T, new frames; a step starts at a chunk's start.
        past: W, cached frames before them.
        chunk: frames of a chunk.
        window: keys a query may reach back from its chunk's end, in frames.
        position: [B], frames each stream has had before this step (cached slots before its start hold nothing).

    Returns:
        bool [B, 1, T, W + T].
    """
    device = position.device
    end = (torch.arange(frames, device=device) // chunk + 1)[:, None] * chunk
    key = torch.arange(-past, frames, device=device)[None, :]
    reachable = (key < end) & (key >= end - window)
    filled = key >= -position[:, None]
    return (reachable[None] & filled[:, None, :])[:, None]
