"""Whole chunks: what a streaming codec asks for, and the loop that takes a whole utterance through it in pieces.

Everything here takes PyTorch tensors and NumPy arrays alike, so it needs no PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    Array = TypeVar("Array", Tensor, np.ndarray)


class StreamingCodec(Protocol):
    """What a live stream or a pool of them needs of a codec; see `tokenizer.Codec`."""

    @property
    def chunk_samples(self) -> int: ...
    @property
    def tokens_per_chunk(self) -> int: ...
    @property
    def samples_per_token(self) -> int: ...
    @property
    def codebook_size(self) -> int: ...
    def token_count(self, samples: int) -> int: ...
    def init_state(self, batch_size: int) -> Any: ...
    def encode_step(self, chunk: Tensor, state: Any) -> tuple[Tensor, Any]: ...
    def decode_step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]: ...


def whole_chunks(x: Array, chunk: int, fill: float) -> Array:
    """x [B, N] filled at the end to a whole number of chunks of `chunk` columns."""
    missing = -x.shape[1] % chunk
    if isinstance(x, np.ndarray):
        return np.pad(x, ((0, 0), (0, missing)), constant_values=fill)
    import torch

    return torch.nn.functional.pad(x, (0, missing), value=fill)


def in_pieces(step: Callable[[Array, Any], tuple[Array, Any]], x: Array, state: Any, size: int) -> Array:
    """The outputs [B, M, ...] of `step` over x [B, N], joined; `size` columns a step, so that memory is bounded.

    Args:
        step: (columns, state) to (output, next state), such as `Codec.encode_step`.
        x: a whole number of chunks.
        state: the initial one.
        size: a whole number of chunks; the last step may have fewer.
    """
    outputs = []
    for begin in range(0, x.shape[1], size):
        output, state = step(x[:, begin : begin + size], state)
        outputs.append(output)
    return _joined(outputs, axis=1)


def regrouped(blocks: Iterable[Array], size: int) -> Iterator[Array]:
    """Blocks [n] of any length, as they arrive, as blocks of exactly `size`; the last one may be shorter."""
    held: list[Array] = []
    count = 0
    for block in blocks:
        held.append(block)
        count += len(block)
        if count < size:
            continue
        joined = _joined(held, axis=0)
        whole = count // size * size
        for begin in range(0, whole, size):
            yield joined[begin : begin + size]
        held, count = [joined[whole:]], count - whole
    if count:
        yield _joined(held, axis=0)


def _joined(parts: list[Array], axis: int) -> Array:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts, axis=axis)
    import torch

    return torch.cat(parts, dim=axis)
