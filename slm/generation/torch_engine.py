"""Codecs and language models on tensors, with the interfaces of those on arrays (`slm.generation.engines`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from slm.model.decoding import Cache, DecodingWeights, decode_one_token, make_cache, prefill
from slm.model.transformer import LanguageModel


class TensorCodec:
    """A codec that takes and gives tensors, with arrays at its edges; everything else is the codec's own."""

    def __init__(self, codec: Any) -> None:
        self.wrapped = codec

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)

    def encode(self, wave: np.ndarray) -> np.ndarray:
        return array(self.wrapped.encode(torch.from_numpy(np.ascontiguousarray(wave))))

    def encode_step(self, chunk: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        tokens, state = self.wrapped.encode_step(torch.from_numpy(np.ascontiguousarray(chunk)), state)
        return array(tokens), state

    def decode_step(self, tokens: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        wave, state = self.wrapped.decode_step(torch.from_numpy(np.ascontiguousarray(tokens)), state)
        return array(wave.float()), state


class TensorCache:
    """`slm.model.decoding.Cache` with rows by number."""

    def __init__(self, tensors: Cache) -> None:
        self.tensors = tensors

    @property
    def position(self) -> Tensor:
        return self.tensors.position

    def row(self, index: int) -> TensorCache:
        """One stream of it: the same memory."""
        return TensorCache(Cache(*(part[index : index + 1] for part in self.tensors)))


class TensorModel:
    """A language model with arrays at its edges: its weights at the time of the call."""

    def __init__(self, model: LanguageModel) -> None:
        self._model, self._weights = model, DecodingWeights(model)
        self.context = model.config.context

    def make_cache(self, batch: int, longest_write: int = 128) -> TensorCache:
        return TensorCache(make_cache(self._model, batch, longest_write))

    def prefill(self, tokens: np.ndarray, lengths: np.ndarray, cache: TensorCache) -> np.ndarray:
        return array(prefill(self._weights, self._tensor(tokens), self._tensor(lengths), cache.tensors))

    def decode_one_token(self, token: np.ndarray, cache: TensorCache, live: np.ndarray | None = None) -> np.ndarray:
        alive = None if live is None else self._tensor(live)
        return array(decode_one_token(self._weights, self._tensor(token), cache.tensors, alive))

    def _tensor(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(self._weights.device)


def array(x: Tensor) -> np.ndarray:
    """A tensor of any device as an array."""
    return x.detach().cpu().numpy()
