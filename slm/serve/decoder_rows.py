"""The decoder's states of N streams in one batch, of either engine.

With ONNX Runtime a row's output does not depend on the batch size, so only the rows that are due are stepped. With
PyTorch it does, so a step always has N rows, and rows that are not due are filled with dummies.

Legend: N streams, T tokens, S samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from slm.vocabulary import NO_CODE
from tokenizer.onnx_engine.arrays import ArrayCodec


class DecoderRows(Protocol):
    """N streams, each at its own place."""

    def replace(self, row: int, state: Any) -> None:
        """Put a codec's state of one stream into a row."""

    def decode(self, tokens: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """The next chunk of some rows, int64 [T] each, to samples float32 [S]; the other rows stay as they are."""


def decoder_rows(codec: Any, size: int) -> DecoderRows:
    """Rows for `size` streams of a codec of any engine. Raises InputError for one that does not stream."""
    return ArrayRows(codec, size) if isinstance(codec, ArrayCodec) else PooledRows(codec, size)


class ArrayRows:
    """Rows of an `ArrayCodec`, without PyTorch."""

    def __init__(self, codec: ArrayCodec, size: int) -> None:
        self._codec, self._state = codec, codec.init_state(size)

    def replace(self, row: int, state: Any) -> None:
        for rows, leaf in zip(self._state.decoder, state.decoder, strict=True):
            rows[row] = leaf[0]

    def decode(self, tokens: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        slots = sorted(tokens)
        decoder = tuple(leaf[slots] for leaf in self._state.decoder)
        encoder = tuple(leaf[: len(slots)] for leaf in self._state.encoder)  # not stepped: only its rows count
        state = self._state._replace(encoder=encoder, decoder=decoder)
        audio, state = self._codec.decode_step(np.stack([tokens[slot] for slot in slots]), state)
        for rows, leaf in zip(self._state.decoder, state.decoder, strict=True):
            rows[slots] = leaf
        return dict(zip(slots, audio, strict=True))


class PooledRows:
    """Rows of a codec on tensors, in a pool that is always full."""

    def __init__(self, codec: Any, size: int) -> None:
        from tokenizer import Codec
        from tokenizer.stream_pool import StreamPool

        self._size, self._fills = size, isinstance(codec, Codec)
        self._silent = np.full(codec.tokens_per_chunk, NO_CODE, dtype=np.int64)
        self._pool = StreamPool(codec, 2 * size - 1 if self._fills else size)
        while len(self._pool.active) < self._pool.size:
            self._pool.join()

    def replace(self, row: int, state: Any) -> None:
        self._pool.leave(row)
        assert self._pool.join(state) == row, "every other row is occupied"

    def decode(self, tokens: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        fillers = range(self._size, 2 * self._size - len(tokens)) if self._fills else range(0)
        rows: dict[int, Any] = {**tokens, **dict.fromkeys(fillers, self._silent)}
        audio = self._pool.decode(rows)
        return {slot: audio[slot].float().cpu().numpy() for slot in tokens}
