"""The language model: a Llama-style causal Transformer over whole rows. `slm.model.decoding` generates with a cache.

Dimension letters:  B batch    T tokens    D width    V vocabulary    H query heads    K head width

Parameter names are those of `transformers.LlamaModel` (half-split rotary convention, no biases), so that exporting only
changes a prefix. Unlike Llama the model has a sliding window: a token sees the latest `context` tokens, including
itself, in training and in generation. So an endless session never leaves the lengths that the model was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from slm.model.code_bits import CODE_EMBEDDINGS, BitEmbedding, BitGroupHead, begin_as_bits
from slm.model.cross_entropy import matrix_dtype, summed_cross_entropy
from slm.model.packed_attention import Visible, attend, visible_tokens
from tokenizer.errors import InputError

MOST_CONTEXT = 1 << 17  # tokens, 44 minutes at 50 a second


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the model, and its options for codes as bits (`slm.model.code_bits`).

    `code_embedding`: "table" is a free vector for each code; "table_from_bits" is a table initialised with a projection
    of the codes' bits; "bits" is that projection itself. `head_groups`: 1 predicts all ids at once; more predict the
    bits in this number of groups, each given the groups before. "bits" and groups cannot have tied embeddings.

    Raises:
        InputError: a value is out of range, or two values do not fit each other.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn_width: int
    context: int  # tokens that a token sees, including itself
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
        if self.context > MOST_CONTEXT:
            raise InputError(
                f"model.context is {self.context}; expected {MOST_CONTEXT} tokens at most, because generation keeps "
                "them all in memory"
            )
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
                f"model.head_groups {self.head_groups} the embedding and the head are not both tables; expected false"
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


def rotary_angles(positions: Tensor, width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B, 1, T, K] of rotary positions (arXiv 2104.09864) [B, T], half-split as in Llama.

    `width` is K and `theta` the base. In float64: after a day at 50 tokens a second a float32 angle would be off by a
    quarter of a radian.
    """
    half = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device)
    angles = positions.double()[:, None, :, None] * theta ** (-half / width)
    cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat((cosine, cosine), dim=-1), torch.cat((sine, sine), dim=-1)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the pairs (i, i + K/2) of x [B, H, T, K]; the dtype of x is kept."""
    first, second = x.chunk(2, dim=-1)
    return (x * cosine + torch.cat((-second, first), dim=-1) * sine).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = config.heads, config.kv_heads, config.head_width
        self.q_proj = nn.Linear(config.width, config.heads * config.head_width, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_heads * config.head_width, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_heads * config.head_width, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_width, config.width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], visible: Visible | None) -> Tensor:
        """[B, T, D] -> [B, T, D]; `visible` is from `slm.model.packed_attention.visible_tokens`."""
        batch, tokens, _ = x.shape
        query = self.q_proj(x).view(batch, tokens, self.heads, self.head_width).transpose(1, 2)
        key = self.k_proj(x).view(batch, tokens, self.kv_heads, self.head_width).transpose(1, 2)
        value = self.v_proj(x).view(batch, tokens, self.kv_heads, self.head_width).transpose(1, 2)
        query, key = rotate(query, *rotation), rotate(key, *rotation)
        mixed = attend(query, key, value, visible)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class LayerNorm(nn.RMSNorm):
    """RMSNorm. Under autocast its output is cast once for all the matrices that read it."""

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

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], visible: Visible | None) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), rotation, visible))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class LanguageModel(nn.Module):
    """Token ids to logits of the next token.

    Args:
        config: the shape.
        vocabulary_size: V.
        pieces: the number of ids, the last ones, that are pieces of text.

    Attributes:
        recompute: in training, keep only the input of each layer and recompute the rest in the backward pass. Needs
            less memory and about a third more computation; the gradients are the same.

    Raises:
        InputError: an option does not fit the number of codes.
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
        self._pieces = pieces
        if not self.norm.weight.is_meta:  # else the weights come later: from a file, or shard by shard
            with torch.no_grad():
                for name, values in self.initial_weights():
                    self.get_parameter(name).copy_(values)

    def initial_weights(self, generator: torch.Generator | None = None) -> Iterator[tuple[str, Tensor]]:
        """The weights that a new model has, one after the other, by the names of `stored_weights`: float32 on the CPU.

        Args:
            generator: of the CPU; None: the default one.
        """
        table = None
        for name, parameter in self.named_parameters():
            values = torch.ones(parameter.shape, device="cpu")
            if parameter.dim() == 2:
                # Smaller weights into the residual stream keep its variance from growing with depth.
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = 1 / math.sqrt(2 * self.config.layers) if into_residual else 1.0
                values.normal_(std=0.02 * scale, generator=generator)
            if name == "embed_tokens.weight" and self.config.code_embedding == "table_from_bits":
                table = values  # its bits' vectors are drawn last
            else:
                yield name, values
        if table is not None:
            begin_as_bits(table, self._pieces, generator)
            yield "embed_tokens.weight", table

    def forward(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        targets: Tensor | None = None,
        by_row: bool = False,
    ) -> Tensor:
        """Logits of every next token, or with `targets` the loss.

        Args:
            tokens: [B, T] int64 ids.
            documents: [B, T] int64: a token sees only tokens with its own number. None: each row is one document.
            positions: [B, T] int64: position of each token in its document. None: counted from the start of the row.
            targets: [B, T] int64 ids, or `slm.model.cross_entropy.IGNORED`. With targets the logits of the whole batch
                are never in memory at once.
            by_row: sum each row by itself.

        Returns:
            [B, T, V] logits; with targets the summed cross-entropy in nats, a scalar, or [B].
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        dtype = matrix_dtype(self.norm.weight)
        visible = visible_tokens(documents, tokens, self.config.context, dtype)
        hidden = self._hidden(tokens, positions, visible)
        if targets is None:
            return self.lm_head(hidden)
        if by_row:
            return torch.stack([self._summed_loss(*row) for row in zip(hidden, targets, strict=True)])
        return self._summed_loss(hidden.flatten(0, 1), targets.flatten())

    def _summed_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats of targets [N] after [N, D], a scalar."""
        if isinstance(self.lm_head, BitGroupHead):
            return self.lm_head.summed_loss(hidden, targets)
        return summed_cross_entropy(hidden, self.lm_head.weight, targets)

    def compile_whole(self, **options: Any) -> None:
        """Compile embedding, layers and last norm as one graph; the mask and the loss stay outside. For `options` see
        `torch.compile`."""
        self._hidden = torch.compile(self._hidden, **options)  # type: ignore[method-assign]

    def stored_weights(self) -> dict[str, Tensor]:
        """The weights to store in a file: all but a tied head, which is the embedding."""
        weights = dict(self.state_dict())
        if self.config.tied_embeddings:
            del weights["lm_head.weight"]
        return weights

    def _hidden(self, tokens: Tensor, positions: Tensor, visible: Visible | None) -> Tensor:
        """[B, T] ids -> [B, T, D] after the last norm."""
        x = self.dropout(self.embed_tokens(tokens))
        rotation = rotary_angles(positions, self.config.head_width, self.config.rope_theta, x.dtype)
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, rotation, visible, use_reentrant=False)
            else:
                x = layer(x, rotation, visible)
        return self.norm(x)
