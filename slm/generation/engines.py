"""What generation needs of a codec and of a language model: NumPy arrays in and out, whatever engine computes them.

`ArrayCodec` and `ArrayLanguageModel` (ONNX Runtime) work on arrays already; those of PyTorch are wrapped here. So a
process that only runs ONNX Runtime never imports PyTorch.

Legend: B batch, S samples, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from slm.onnx_engine.arrays import ArrayLanguageModel
from tokenizer.onnx_engine.arrays import ArrayCodec

if TYPE_CHECKING:
    from torch import Tensor

    from slm.model.decoding import Cache
    from slm.model.transformer import LanguageModel


class GenerationCache(Protocol):
    """The state of B streams, written in place. Setting `position[b]` to 0 empties row b; a `row` shares its memory."""

    @property
    def position(self) -> Any: ...
    def row(self, index: int) -> GenerationCache: ...


class GenerationModel(Protocol):
    """A language model that generates; see `slm.model.decoding`. `context`: tokens that a token sees."""

    @property
    def context(self) -> int: ...
    def make_cache(self, batch: int, longest_write: int = 128) -> GenerationCache: ...
    def prefill(self, tokens: np.ndarray, lengths: np.ndarray, cache: Any) -> np.ndarray: ...
    def decode_one_token(self, token: np.ndarray, cache: Any, live: np.ndarray | None = None) -> np.ndarray: ...


class TensorCodec:
    """A codec that takes and gives tensors, with arrays at its edges; everything else is the codec's own."""

    def __init__(self, codec: Any) -> None:
        self.wrapped = codec

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)

    def encode(self, wave: np.ndarray) -> np.ndarray:
        return array(self.wrapped.encode(tensor(wave)))

    def encode_step(self, chunk: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        tokens, state = self.wrapped.encode_step(tensor(chunk), state)
        return array(tokens), state

    def decode_step(self, tokens: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        wave, state = self.wrapped.decode_step(tensor(tokens), state)
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
        return TensorCache(type(self.tensors)(*(part[index : index + 1] for part in self.tensors)))


class TensorModel:
    """A language model on tensors with arrays at its edges: its weights as they are now."""

    def __init__(self, model: LanguageModel) -> None:
        from slm.model import decoding

        self._model, self._decoding = model, decoding
        self._weights = decoding.DecodingWeights(model)
        self.context = model.config.context

    def make_cache(self, batch: int, longest_write: int = 128) -> TensorCache:
        return TensorCache(self._decoding.make_cache(self._model, batch, longest_write))

    def prefill(self, tokens: np.ndarray, lengths: np.ndarray, cache: TensorCache) -> np.ndarray:
        device = self._weights.device
        ids, counts = tensor(tokens).to(device), tensor(lengths).to(device)
        return array(self._decoding.prefill(self._weights, ids, counts, cache.tensors))

    def decode_one_token(self, token: np.ndarray, cache: TensorCache, live: np.ndarray | None = None) -> np.ndarray:
        device = self._weights.device
        alive = None if live is None else tensor(live).to(device)
        return array(self._decoding.decode_one_token(self._weights, tensor(token).to(device), cache.tensors, alive))


def codec_on_arrays(codec: Any) -> Any:
    """A codec of any engine with the interface of `ArrayCodec`."""
    if isinstance(codec, ArrayCodec):
        return codec
    return codec if isinstance(codec, TensorCodec) else TensorCodec(codec)


def model_on_arrays(model: Any) -> GenerationModel:
    """A language model of any engine with the interface of `ArrayLanguageModel`: its weights as they are now."""
    if isinstance(model, ArrayLanguageModel):
        return model
    return model if isinstance(model, TensorModel) else TensorModel(model)


def tensor(x: np.ndarray) -> Tensor:
    """An array as a tensor of the same memory, where it is contiguous."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(x))


def array(x: Tensor) -> np.ndarray:
    """A tensor of any device as an array."""
    return x.detach().cpu().numpy()
