"""An exported language model on NumPy arrays, without PyTorch; its interface is that of `slm.model.decoding`.

    model = ArrayLanguageModel(folder, "int8", threads=1)
    cache = model.make_cache(batch=B)
    logits = model.prefill(prompts, lengths, cache)
    logits = model.decode_one_token(token, cache)      # and again

Dimension letters:  B batch    T tokens of this call    C cache slots    N layers    V vocabulary
                    G key/value heads    R query heads for each    K head width
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from slm.onnx_engine.manifest import GRAPH, Manifest
from tokenizer.errors import InputError
from tokenizer.onnx_engine.runtime import bind_array, open_session, zeros


class ArrayCache:
    """The state of B generating streams, written in place. As `slm.model.decoding.Cache`, layer by layer.

    Attributes:
        keys: N arrays [B, G, K, C + 1], rotated.
        values: N arrays [B, G, C + 1, K].
        position: int64 [B], tokens that each stream has taken in.
    """

    def __init__(self, keys: list[np.ndarray], values: list[np.ndarray], position: np.ndarray) -> None:
        self.keys, self.values, self.position = keys, values, position
        self.step: Callable[[], np.ndarray] | None = None  # a step of one token a stream, bound to these arrays
        self.inputs: dict[str, np.ndarray] = {}  # of that step

    @property
    def capacity(self) -> int:
        """C, the number of slots that can be read."""
        return self.keys[0].shape[3] - 1

    def row(self, index: int) -> ArrayCache:
        """One stream of it: the same memory."""
        part = slice(index, index + 1)
        return ArrayCache([k[part] for k in self.keys], [v[part] for v in self.values], self.position[part])


class ArrayLanguageModel:
    """A language model from a folder that `slm.onnx_engine.export` made.

    Args:
        folder: of the graph, its weights and its description.
        precision: what it is expected to hold.
        threads: of the CPU; 0: as many as there are cores.

    Raises:
        InputError: the folder is damaged, or holds another precision; `onnxruntime` is not installed.
    """

    def __init__(self, folder: Path, precision: str, threads: int = 0) -> None:
        self.shape = Manifest.read(folder)
        if self.shape.precision != precision:
            raise InputError(f"{folder}: was exported as {self.shape.precision}, not {precision}; export it again")
        self._session = open_session(folder / GRAPH, threads)
        layers = range(self.shape.layers)
        self._states = [f"{kind}.{layer}" for layer in layers for kind in ("keys", "values")]
        half = np.arange(0, self.shape.head_width, 2, dtype=np.float64)
        self._frequencies = self.shape.rope_theta ** (-half / self.shape.head_width)

    @property
    def context(self) -> int:
        """Tokens that a token sees, itself included."""
        return self.shape.context

    def make_cache(self, batch: int, longest_write: int = 128) -> ArrayCache:
        """An empty cache for `batch` streams that takes in at most `longest_write` tokens at once."""
        shape = self.shape
        slots, groups, width = shape.context + longest_write, shape.kv_heads, shape.head_width
        keys = [zeros((batch, groups, width, slots)) for _ in range(shape.layers)]
        values = [zeros((batch, groups, slots, width)) for _ in range(shape.layers)]
        return ArrayCache(keys, values, np.zeros(batch, dtype=np.int64))

    def prefill(self, tokens: np.ndarray, lengths: np.ndarray, cache: ArrayCache) -> np.ndarray:
        """Take in prompts, int64 [B, T] of int64 `lengths` [B]; logits float32 [B, V] after each row's last token.

        See `slm.model.decoding.prefill`.
        """
        block = cache.capacity - self.shape.context + 1
        logits = np.zeros((len(tokens), self.shape.vocabulary_size), dtype=np.float32)
        for start in range(0, tokens.shape[1], block):
            piece = tokens[:, start : start + block]
            counts = (lengths - start).clip(0, piece.shape[1])
            at = lengths - 1 - start
            ends_here = (at >= 0) & (at < piece.shape[1])
            inputs = self._inputs(piece, counts, cache, at.clip(0, piece.shape[1] - 1))
            found = self._bound(inputs, cache)()
            logits[ends_here] = found[ends_here]
            cache.position += counts
        return logits

    def decode_one_token(self, token: np.ndarray, cache: ArrayCache, live: np.ndarray | None = None) -> np.ndarray:
        """Take in one token a stream, int64 [B]: logits float32 [B, V] of the next, valid until the next call.

        See `slm.model.decoding.decode_one_token`.
        """
        counts = np.ones_like(token) if live is None else live.astype(np.int64)
        inputs = self._inputs(token[:, None], counts, cache, np.zeros_like(token))
        if cache.step is None:
            cache.inputs = inputs
            cache.step = self._bound(inputs, cache)
        else:
            for name, value in inputs.items():
                cache.inputs[name][...] = value
        logits = cache.step()
        cache.position += counts
        return logits

    def _inputs(
        self, tokens: np.ndarray, counts: np.ndarray, cache: ArrayCache, last: np.ndarray
    ) -> dict[str, np.ndarray]:
        """What the graph is given beside the caches, when the first counts[b] of tokens [B, T] are taken in."""
        shape, capacity, (batch, count) = self.shape, cache.capacity, tokens.shape
        assert count <= capacity - shape.context + 1, "this write would evict keys that its first token sees"
        steps = np.arange(count)
        positions = cache.position[:, None] + steps
        target = np.where(steps < counts[:, None], positions % capacity, capacity)
        target = np.broadcast_to(target[:, None, :, None], (batch, shape.kv_heads, count, shape.head_width))
        # In float64: after a day at 50 tokens a second a float32 angle would be wrong by a quarter of a radian.
        angles = positions.reshape(-1, 1) * self._frequencies
        newest = (cache.position + counts - 1)[:, None]
        slots = np.arange(capacity)
        held = newest - (newest - slots) % capacity  # the position in each slot
        # A padding token sees what the last real token sees.
        behind = np.minimum(positions, newest)[:, :, None] - held[:, None, :]
        visible = np.zeros((batch, count, capacity + 1), dtype=bool)
        visible[..., :capacity] = (held >= 0)[:, None, :] & (behind >= 0) & (behind < shape.context)
        visible[~visible.any(-1)] = True  # such rows have no meaning, but their NaN would stay in the cache
        seen = np.where(visible, np.float32(0), np.float32(-np.inf))
        if count > 1:
            seen = np.repeat(seen, shape.heads // shape.kv_heads, axis=1)
        return {
            "ids": np.ascontiguousarray(tokens, dtype=np.int64),
            "angles": np.arange(batch * count, dtype=np.int64).reshape(batch, count),
            "cosine": np.cos(angles).astype(np.float32),
            "sine": np.sin(angles).astype(np.float32),
            "target": np.ascontiguousarray(target),
            "seen": np.ascontiguousarray(seen[:, None]),
            "last": np.ascontiguousarray(last, dtype=np.int64),
        }

    def _bound(self, inputs: dict[str, np.ndarray], cache: ArrayCache) -> Callable[[], np.ndarray]:
        """The graph, bound to these inputs and to the cache: calling it writes the cache and returns the logits."""
        binding: Any = self._session.io_binding()
        for name, array in inputs.items():
            bind_array(binding.bind_input, name, array)
        arrays = [array for pair in zip(cache.keys, cache.values, strict=True) for array in pair]
        for name, array in zip(self._states, arrays, strict=True):
            bind_array(binding.bind_input, name, array)
            bind_array(binding.bind_output, f"next.{name}", array)
        logits = np.empty((len(cache.position), self.shape.vocabulary_size), dtype=np.float32)
        bind_array(binding.bind_output, "logits", logits)

        def run() -> np.ndarray:
            self._session.run_with_iobinding(binding)
            return logits

        return run
