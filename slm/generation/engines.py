"""What generation asks of a codec and of a language model, on NumPy arrays, whatever engine computes them.

`ArrayCodec` and `ArrayLanguageModel` (ONNX Runtime) are such already; those of PyTorch are wrapped. So a process that
only runs ONNX Runtime never imports PyTorch.

Legend: B batch, S samples, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from slm.onnx_engine.arrays import ArrayLanguageModel
from tokenizer.onnx_engine.arrays import ArrayCodec


class GenerationCache(Protocol):
    """The state of B streams, written in place. `position[b]` set to 0 empties row b."""

    @property
    def position(self) -> Any: ...
    def row(self, index: int) -> Any: ...


class GenerationModel(Protocol):
    """A language model that generates; see `slm.model.decoding`. `context`: tokens that a token sees."""

    @property
    def context(self) -> int: ...
    def make_cache(self, batch: int, longest_write: int = 128) -> Any: ...
    def prefill(self, tokens: np.ndarray, lengths: np.ndarray, cache: Any) -> np.ndarray: ...
    def decode_one_token(self, token: np.ndarray, cache: Any, live: np.ndarray | None = None) -> np.ndarray: ...


def codec_on_arrays(codec: Any) -> Any:
    """A codec of any engine with the interface of `ArrayCodec`."""
    if isinstance(codec, ArrayCodec):
        return codec
    from slm.generation.torch_engine import TensorCodec

    return codec if isinstance(codec, TensorCodec) else TensorCodec(codec)


def model_on_arrays(model: Any) -> GenerationModel:
    """A language model of any engine with the interface of `ArrayLanguageModel`: its weights as they are now."""
    if isinstance(model, ArrayLanguageModel):
        return model
    from slm.generation.torch_engine import TensorModel

    return model if isinstance(model, TensorModel) else TensorModel(model)
