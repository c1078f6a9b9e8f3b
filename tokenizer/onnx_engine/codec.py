"""The codec on ONNX Runtime: `Codec` for those who encode and decode on a CPU, several times as fast.

Legend: B batch, S samples, T tokens, n chunks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenizer.onnx_engine.arrays import ArrayCodec, OnnxState
from tokenizer.onnx_engine.cache import cached
from tokenizer.onnx_engine.manifest import MANIFEST
from tokenizer.rates import Rates


class OnnxCodec(Rates):
    """`ArrayCodec` on tensors: as `Codec`, but no `nn.Module` and without the stages in between.

    It runs on as many CPU threads as PyTorch had been given when it was made (`torch.set_num_threads`).

    In 8 bits some tokens differ from those of the float32 codec, but the token space is the same, and so is the
    fingerprint. Rows of a batch do not share a scale, so one row does not change another. But another batch size or
    chunk size changes the last digit of some float32 values, and such a change can move a value to the next of 256
    levels: bits flip more often than in float32.

    It can be pickled, for worker processes: they load it from its folder.

    Args:
        folder: as `tokenizer.onnx_engine.export.export` writes it.
        precision: what the folder is expected to hold.
        name: what to call the codec.

    Raises:
        InputError: as `ArrayCodec` does.
    """

    def __init__(self, folder: Path, precision: str, name: str) -> None:
        self._folder = folder.absolute()
        self._arrays = ArrayCodec(folder, precision, torch.get_num_threads(), name)
        self.config, self.name = self._arrays.config, name
        self.fingerprint, self.precision = self._arrays.fingerprint, precision

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._folder, self.precision, self.name)

    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Wave [B, S] or [S] to tokens int64 [B, token_count(S)]; see `Codec.encode`."""
        return torch.from_numpy(self._arrays.encode(_array(wave), lengths))

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] or [T] to wave float32 [B, T * samples_per_token]; see `Codec.decode`."""
        return torch.from_numpy(self._arrays.decode(_array(tokens)))

    def init_state(self, batch_size: int) -> OnnxState:
        """The state of `batch_size` streams that have not begun."""
        return self._arrays.init_state(batch_size)

    def encode_step(self, chunk: Tensor, state: OnnxState) -> tuple[Tensor, OnnxState]:
        """The next chunks [B, n * chunk_samples] of streams to tokens, and the next state; see `Codec.encode_step`."""
        tokens, state = self._arrays.encode_step(_array(chunk), state)
        return torch.from_numpy(tokens), state

    def decode_step(self, tokens: Tensor, state: OnnxState) -> tuple[Tensor, OnnxState]:
        """The next tokens [B, n * tokens_per_chunk] to wave, and the next state; see `Codec.decode_step`."""
        wave, state = self._arrays.decode_step(_array(tokens), state)
        return torch.from_numpy(wave), state


def _array(x: Any) -> np.ndarray:
    """What `torch.as_tensor` takes, as an array; bfloat16, which NumPy lacks, becomes float32."""
    tensor = torch.as_tensor(x, device="cpu").detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def load(name: str, precision: str) -> OnnxCodec:
    """An exported folder, or any codec that `Codec.from_pretrained` finds, exported into the user's cache first."""
    if (Path(name) / MANIFEST).is_file():
        return OnnxCodec(Path(name), precision, name)
    return OnnxCodec(cached(name, precision), precision, name)
