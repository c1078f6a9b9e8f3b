"""The language model: a Llama-style causal Transformer, its key/value cache, and the two functions that generate.

Dimension letters:  B batch    T tokens of this call    C cache slots    V vocabulary
                    D width    N layers                 H query heads    G key/value heads    K head width

Parameter names are those of `transformers.LlamaModel` (half-split rotary convention, no biases), so exporting is a
change of prefix. The one thing Llama lacks is the sliding window: a token sees the `context` latest tokens, itself
included, in training as in generation, so that an endless session stays inside what the model was trained on.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from slm.code_bits import CODE_EMBEDDINGS, BitEmbedding, BitGroupHead, begin_as_bits
from slm.cross_entropy import matrix_dtype, summed_cross_entropy
from slm.rotary import rotary_angles, rotate
from tokenizer.errors import InputError


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the model, and its options for codes that are bits (`slm.code_bits`).

    `code_embedding`: "table", a free vector for each code; "table_from_bits", which starts as a projection of the
    codes' bits; "bits", which stays one. `head_groups`: 1, logits of all ids; more, bits in so many groups, each given
    those before. Neither "bits" nor groups leaves a table to tie the head to.

    Raises:
        InputError: a size that is not positive, or two sizes that do not fit each other.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn_width: int
    context: int  # tokens a token can see, itself included
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied_embeddings: bool = True
    dropout: float = 0.0  # on embeddings and on each residual branch, while training
    code_embedding: str = "table"
    head_groups: int = 1

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "kv_heads", "ffn_width", "context", "head_groups"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; expected at least 1")
        if self.width % self.heads:
            raise InputError(f"model.width {self.width} is not a multiple of model.heads {self.heads}")
        if self.heads % self.kv_heads:
            raise InputError(f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}")
        if self.head_width % 2:
            raise InputError(
                f"model.width {self.width} / model.heads {self.heads} = {self.head_width} is odd; rotary positions "
                "need an even head width"
            )
        if self.code_embedding not in CODE_EMBEDDINGS:
            raise InputError(
                f"model.code_embedding is {self.code_embedding!r}; expected one of {', '.join(CODE_EMBEDDINGS)}"
            )
        if self.tied_embeddings and (self.code_embedding == "bits" or self.head_groups > 1):
            raise InputError(
                f"model.tied_embeddings is true, but with model.code_embedding {self.code_embedding!r} and "
                f"model.head_groups {self.head_groups} embedding and head are not both tables; expected false"
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"model.dropout is {self.dropout}; expected 0 <= dropout < 1")
        if self.rope_theta <= 1 or self.norm_eps <= 0:
            raise InputError(
                f"model.rope_theta is {self.rope_theta}, expected more than 1; model.norm_eps is {self.norm_eps}, "
                "expected more than 0"
            )

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Cache(NamedTuple):
    """The state of B generating streams. `prefill` and `decode_one_token` write into these tensors in place.

    The token at position p lies in slot p mod C, so the cache rolls and never grows. Which position a slot holds
    follows from `position` alone. C exceeds the context by the largest write less one: a write of several tokens must
    not evict what the first of them still sees. One slot more, the last, receives the padding of ragged prompts and is
    never read.
    """

    keys: Tensor  # [B, N, G, C + 1, K], rotated
    values: Tensor  # [B, N, G, C + 1, K]
    position: Tensor  # [B] int64: how many tokens each stream has taken in

    @property
    def capacity(self) -> int:
        """C, the number of slots that can be read."""
        return self.keys.shape[3] - 1


class Slots(NamedTuple):
    """Where the tokens of one call go in the cache, and what they see there."""

    target: Tensor  # [B, T] int64, in 0..C
    visible: Tensor  # [B, 1, T, C] bool


class Attention(nn.Module):
    """Grouped-query attention over the tokens of the call, or over a cache that they are first written to."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = config.heads, config.kv_heads, config.head_width
        self.q_proj = nn.Linear(config.width, config.heads * config.head_width, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_heads * config.head_width, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_heads * config.head_width, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_width, config.width, bias=False)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        visible: Tensor | None,
        past: tuple[Tensor, Tensor, Slots] | None,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]; `visible` [B, 1, T, T] is added to the scores (None: causal, or the cache's)."""
        batch, tokens, _ = x.shape
        query = self.q_proj(x).view(batch, tokens, self.heads, self.head_width).transpose(1, 2)
        key = self.k_proj(x).view(batch, tokens, self.kv_heads, self.head_width).transpose(1, 2)
        value = self.v_proj(x).view(batch, tokens, self.kv_heads, self.head_width).transpose(1, 2)
        query, key = rotate(query, *rotation), rotate(key, *rotation)
        if past is not None:
            past_keys, past_values, slots = past
            target = slots.target[:, None, :, None].expand_as(key)
            past_keys.scatter_(2, target, key)
            past_values.scatter_(2, target, value)
            key, value, visible = past_keys[:, :, :-1], past_values[:, :, :-1], slots.visible
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, is_causal=visible is None, enable_gqa=self.heads != self.kv_heads
        )
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class LayerNorm(nn.RMSNorm):
    """RMSNorm, whose output under autocast is cast once for all the matrices that take it in."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(matrix_dtype(x))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.ffn_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.ffn_width, bias=False)
        self.down_proj = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(config.width, eps=config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        visible: Tensor | None,
        past: tuple[Tensor, Tensor, Slots] | None,
    ) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), rotation, visible, past))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class LanguageModel(nn.Module):
    """Token ids to the logits of the next token.

    Args:
        config: the shape.
        vocabulary_size: V.
        pieces: how many of the ids, the last ones, are pieces of text.

    Attributes:
        recompute: while training, keep only the input of each layer and compute the rest again in the backward pass:
            less memory for about a third more work, the same gradients.

    Raises:
        InputError: an option of the configuration does not fit the number of codes.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, pieces: int = 0) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.embed_tokens: nn.Embedding | BitEmbedding
        self.lm_head: nn.Linear | BitGroupHead
        if config.code_embedding == "bits":
            self.embed_tokens = BitEmbedding(vocabulary_size, config.width, pieces)
        else:
            self.embed_tokens = nn.Embedding(vocabulary_size, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        if config.head_groups > 1:
            self.lm_head = BitGroupHead(config.width, vocabulary_size, config.head_groups, pieces)
        else:
            self.lm_head = nn.Linear(config.width, vocabulary_size, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        if config.tied_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self._initialise(pieces)

    def _initialise(self, pieces: int) -> None:
        # The branches that add to the residual stream start smaller, so that its variance does not grow with depth.
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = 1 / math.sqrt(2 * self.config.layers) if into_residual else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)
        if self.config.code_embedding == "table_from_bits":
            assert isinstance(self.embed_tokens, nn.Embedding)
            begin_as_bits(self.embed_tokens, pieces)

    def forward(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Logits of every next token, or the loss, without a cache.

        Args:
            tokens: [B, T] int64 ids.
            documents: [B, T] int64: tokens see only tokens of the same number. None: each row is one document.
            positions: [B, T] int64: where each token stands in its document. None: counted from the row's start.
            targets: [B, T] int64 ids, or `slm.cross_entropy.IGNORED`. With them, no logits of the whole batch exist.

        Returns:
            [B, T, V] logits; with targets, their cross-entropy in nats, summed.
        """
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        if positions is None:
            positions = steps.expand_as(tokens)
        visible = None
        if documents is not None or tokens.shape[1] > self.config.context:
            behind = steps[:, None] - steps[None, :]
            visible = ((behind >= 0) & (behind < self.config.context))[None]
            if documents is not None:
                visible = visible & (documents[:, :, None] == documents[:, None, :])
            dtype = matrix_dtype(self.norm.weight)
            visible = torch.zeros(visible.shape, dtype=dtype, device=tokens.device).masked_fill_(~visible, -torch.inf)
            visible = visible[:, None]
        hidden = self._hidden(tokens, positions, visible, None, None)
        if targets is None:
            return self.lm_head(hidden)
        hidden, targets = hidden.flatten(0, 1), targets.flatten()
        if isinstance(self.lm_head, BitGroupHead):
            return self.lm_head.summed_loss(hidden, targets)
        return summed_cross_entropy(hidden, self.lm_head.weight, targets)

    def _hidden(
        self, tokens: Tensor, positions: Tensor, visible: Tensor | None, cache: Cache | None, slots: Slots | None
    ) -> Tensor:
        """[B, T] ids -> [B, T, D] after the last norm."""
        x = self.dropout(self.embed_tokens(tokens))
        rotation = rotary_angles(positions, self.config.head_width, self.config.rope_theta, x.dtype)
        for index, layer in enumerate(self.layers):
            past = None if cache is None or slots is None else (cache.keys[:, index], cache.values[:, index], slots)
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, rotation, visible, past, use_reentrant=False)
            else:
                x = layer(x, rotation, visible, past)
        return self.norm(x)


def make_cache(model: LanguageModel, batch: int, longest_write: int = 128) -> Cache:
    """An empty cache for `batch` streams that takes in at most `longest_write` tokens at once."""
    config, weight = model.config, model.embed_tokens.weight
    capacity = config.context + longest_write - 1
    shape = (batch, config.layers, config.kv_heads, capacity + 1, config.head_width)
    return Cache(
        keys=torch.zeros(shape, dtype=weight.dtype, device=weight.device),
        values=torch.zeros(shape, dtype=weight.dtype, device=weight.device),
        position=torch.zeros(batch, dtype=torch.int64, device=weight.device),
    )


@torch.no_grad()
def prefill(model: LanguageModel, tokens: Tensor, lengths: Tensor, cache: Cache) -> Tensor:
    """Take in a prompt of any length, in blocks that fit the cache.

    Args:
        model: in evaluation mode.
        tokens: [B, T] int64 ids; row b is padded with any valid id beyond lengths[b].
        lengths: [B] int64, each at least 1.
        cache: written in place.

    Returns:
        [B, V] logits of the token after each row's last real one.
    """
    block = cache.capacity - model.config.context + 1
    last_hidden = torch.zeros(
        tokens.shape[0], model.config.width, dtype=model.embed_tokens.weight.dtype, device=tokens.device
    )
    for start in range(0, tokens.shape[1], block):
        piece = tokens[:, start : start + block]
        hidden = _take_in(model, piece, (lengths - start).clamp(0, piece.shape[1]), cache)
        at = lengths - 1 - start
        ends_here = (at >= 0) & (at < piece.shape[1])
        last_hidden[ends_here] = hidden[ends_here, at[ends_here]]
    return model.lm_head(last_hidden)


@torch.no_grad()
def decode_one_token(model: LanguageModel, token: Tensor, cache: Cache, live: Tensor | None = None) -> Tensor:
    """Take in one token a stream: token [B] int64 -> [B, V] logits of the next. The cache is written in place.

    Rows that are not `live` [B] bool stay where they are, and their logits mean nothing; None: all are.
    """
    counts = torch.ones_like(token) if live is None else live.long()
    return model.lm_head(_take_in(model, token[:, None], counts, cache)[:, 0])


@torch.no_grad()
def decode_block(model: LanguageModel, tokens: Tensor, cache: Cache) -> Tensor:
    """Take in as many tokens a stream as the cache's longest write: [B, T] int64 -> [B, T, V] logits after each."""
    return model.lm_head(_take_in(model, tokens, torch.full_like(tokens[:, 0], tokens.shape[1]), cache))


def _take_in(model: LanguageModel, tokens: Tensor, counts: Tensor, cache: Cache) -> Tensor:
    """Write the first counts[b] of the tokens [B, T] of each row to the cache; hidden states [B, T, D] of all."""
    capacity, context = cache.capacity, model.config.context
    assert tokens.shape[1] <= capacity - context + 1, "this write would evict keys that its first token sees"
    steps = torch.arange(tokens.shape[1], device=tokens.device)
    positions = cache.position[:, None] + steps
    last = (cache.position + counts - 1)[:, None]
    held = last - (last - torch.arange(capacity, device=tokens.device)) % capacity  # [B, C]: the position in each slot
    # A padding token sees what the last real one sees: a row that sees nothing would come out as NaN.
    behind = torch.minimum(positions, last)[:, :, None] - held[:, None, :]
    visible = (held >= 0)[:, None, :] & (behind >= 0) & (behind < context)
    target = torch.where(steps < counts[:, None], positions % capacity, capacity)
    hidden = model._hidden(tokens, positions, None, cache, Slots(target, visible[:, None]))
    cache.position.add_(counts)
    return hidden
