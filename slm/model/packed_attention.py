"""Attention over packed rows: a token sees the latest `context` tokens of its own document, without a mask of T x T.

The form follows from device and length, never from a setting:

    causal        one document that is not longer than the context: no mask
    dense         CPU, short rows: a mask [B, 1, T, T] that all layers share
    by document   CPU, long rows: each document by itself, in blocks of queries where it is longer than the context
    blocks        CUDA: FlexAttention, whose compiled kernel skips blocks in which no token sees another

Dimension letters:  B batch    T tokens    H query heads    G key heads    K head width
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LONGEST_DENSE = 1024  # tokens of a row; up to here one product is faster than many small ones

_flex: Any = None  # the compiled FlexAttention; compiled code cannot call what compiles it


class Spans(NamedTuple):
    """Where documents lie, for the form by document."""

    spans: tuple[tuple[int, int, int], ...]  # row, first token, last token + 1: every token of every row
    context: int


Visible = Tensor | Spans | Any  # the last one: FlexAttention's BlockMask. None: causal


def visible_tokens(documents: Tensor | None, tokens: Tensor, context: int, dtype: torch.dtype) -> Visible | None:
    """What each token sees, made once for all layers.

    Args:
        documents: int64 [B, T], the number of each token's document; None: each row is one. Tokens of a document are
            neighbours.
        tokens: [B, T], for its shape and device.
        context: tokens that a token sees, including itself.
        dtype: of the scores, for the dense form.
    """
    length = tokens.shape[1]
    if documents is None and length <= context:
        return None
    if tokens.device.type == "cuda":
        return block_mask(documents, tokens, context)
    if length > LONGEST_DENSE:
        return spans_of(documents, tokens, context)
    return dense_mask(documents, tokens, context, dtype)


def dense_mask(documents: Tensor | None, tokens: Tensor, context: int, dtype: torch.dtype) -> Tensor:
    """[B or 1, 1, T, T], which is added to the scores: 0 where a token sees another, else minus infinity."""
    steps = torch.arange(tokens.shape[1], device=tokens.device)
    behind = steps[:, None] - steps[None, :]
    visible = ((behind >= 0) & (behind < context))[None]
    if documents is not None:
        visible = visible & (documents[:, :, None] == documents[:, None, :])
    mask = torch.zeros(visible.shape, dtype=dtype, device=tokens.device).masked_fill_(~visible, -torch.inf)
    return mask[:, None]


def spans_of(documents: Tensor | None, tokens: Tensor, context: int) -> Spans:
    """The stretches of the rows that belong to one document."""
    rows, length = tokens.shape
    begins = torch.zeros(rows, length, dtype=torch.bool)
    begins[:, 0] = True
    if documents is not None:
        begins[:, 1:] = (documents[:, 1:] != documents[:, :-1]).cpu()
    places = [divmod(place, length) for place in begins.flatten().nonzero()[:, 0].tolist()]
    ends = [*(at if at else length for _, at in places[1:]), length]
    return Spans(tuple((row, first, last) for (row, first), last in zip(places, ends, strict=True)), context)


def block_mask(documents: Tensor | None, tokens: Tensor, context: int) -> Any:
    """FlexAttention's BlockMask: a few bytes for each pair of blocks of 128 tokens."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    global _flex
    if _flex is None:  # uncompiled, both would make all scores
        _flex = torch.compile(flex_attention, dynamic=False) if tokens.device.type == "cuda" else flex_attention

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = (query >= key) & (query - key < context)
        return near if documents is None else near & (documents[row, query] == documents[row, key])

    rows, length = tokens.shape
    on_cuda = tokens.device.type == "cuda"
    batch = None if documents is None else rows
    return create_block_mask(sees, batch, None, length, length, device=tokens.device, _compile=on_cuda)


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Visible | None) -> Tensor:
    """Mix the values by attention.

    Args:
        query: [B, H, T, K].
        key, value: [B, G, T, K]; H is a multiple of G.
        visible: from `visible_tokens`.

    Returns:
        [B, H, T, K].
    """
    grouped = query.shape[1] != key.shape[1]
    if visible is None or isinstance(visible, Tensor):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, is_causal=visible is None, enable_gqa=grouped
        )
    if isinstance(visible, Spans):
        return _by_document(query, key, value, visible)
    mixed: Tensor = _flex(query, key, value, block_mask=visible, enable_gqa=grouped)
    return mixed


def _attend_by_document(query: Tensor, key: Tensor, value: Tensor, visible: Spans) -> Tensor:
    rows: list[list[Tensor]] = [[] for _ in range(len(query))]
    for row, first, last in visible.spans:
        q, k, v = (x[row : row + 1, :, first:last] for x in (query, key, value))
        rows[row] += _one_document(q, k, v, visible.context)
    return torch.cat([torch.cat(parts, dim=2) for parts in rows])


_by_document = _attend_by_document


def leave_uncompiled() -> None:
    """Before layers are compiled: attention by document is not, as its lengths differ in every batch."""
    global _by_document
    _by_document = torch.compiler.disable(_attend_by_document)  # takes seconds to import


def _one_document(query: Tensor, key: Tensor, value: Tensor, context: int) -> list[Tensor]:
    """The parts of a document's output, by blocks of `context` queries: each needs two blocks of keys at most."""
    parts, length, grouped = [], query.shape[2], query.shape[1] != key.shape[1]
    for start in range(0, length, context):
        end, first = min(start + context, length), max(0, start - context + 1)
        near = None
        if start:
            behind = torch.arange(start, end, device=query.device)[:, None] - torch.arange(
                first, end, device=key.device
            )
            near = (behind >= 0) & (behind < context)
        parts.append(
            F.scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, first:end],
                value[:, :, first:end],
                attn_mask=near,
                is_causal=near is None,
                enable_gqa=grouped,
            )
        )
    return parts
