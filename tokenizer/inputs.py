"""Checks of a codec's input: each returns the input, or raises InputError.

They work on tensors and on NumPy arrays, so this module does not import PyTorch.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tokenizer.audio_input.contents import LOUDEST
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    Array = TypeVar("Array", Tensor, np.ndarray)

NO_TOKEN = -1  # padding after a row's last token; decodes to silence


def check_wave(wave: Array, sample_rate: int) -> Array:
    """Waves [B, S] or [S] as [B, S]. Raises InputError."""
    if wave.ndim == 1:
        wave = wave[None]
    if wave.ndim != 2 or not _is_float(wave):
        raise InputError(
            f"encode: wave has shape {tuple(wave.shape)} and type {wave.dtype}; expected floating point samples "
            f"[B, S] or [S] at {sample_rate} Hz. Mix channels down and scale integers to [-1, 1] first."
        )
    if 0 in wave.shape:
        raise InputError(f"encode: wave has shape {tuple(wave.shape)}; expected at least one sample")
    check_samples(wave, "encode: wave")
    return wave


def check_lengths(lengths: Any, wave: Any) -> list[int]:
    """The length of each row of waves [B, S] (None: S) as B integers. Raises InputError."""
    rows, samples = wave.shape
    if lengths is None:
        return [samples] * rows
    listed = (lengths if hasattr(lengths, "tolist") else np.asarray(lengths)).tolist()
    if (
        not isinstance(listed, list)
        or len(listed) != rows
        or not all(isinstance(length, int) and 1 <= length <= samples for length in listed)
    ):
        raise InputError(
            f"encode: lengths are {listed}; expected one number of samples per row ({rows}), each from 1 to {samples}"
        )
    return listed


def check_samples(wave: Any, name: str) -> None:
    """Raise InputError where a wave holds NaN, infinite or absurdly loud samples."""
    peak = float(abs(wave).max())  # NaN where any sample is
    if not peak <= LOUDEST:
        raise InputError(
            f"{name} has a peak of {peak:g}; expected samples in about [-1, 1]. Scale it, or drop this recording "
            "where it holds NaN or infinite samples"
        )


def check_tokens(tokens: Array, codebook_size: int) -> Array:
    """Integers [B, T] or [T] from -1 to codebook_size - 1 as [B, T]. Raises InputError."""
    if tokens.ndim == 1:
        tokens = tokens[None]
    if tokens.ndim != 2 or 0 in tokens.shape or not _is_integer(tokens):
        raise InputError(
            f"decode: tokens have shape {tuple(tokens.shape)} and type {tokens.dtype}; expected integers [B, T]"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < NO_TOKEN or high >= codebook_size:
        raise InputError(
            f"decode: tokens range from {low} to {high}; this codec knows 0 to {codebook_size - 1} "
            "(and -1 for filling). Were they made by another codec?"
        )
    return tokens


def check_chunk(chunk: Any, chunk_samples: int, streams: int) -> None:
    """Raise InputError unless it is [B, n * chunk_samples] of finite floats for a state of that many streams."""
    if chunk.ndim != 2 or chunk.shape[1] == 0 or chunk.shape[1] % chunk_samples:
        raise InputError(
            f"encode_step: chunk has shape {tuple(chunk.shape)}; expected [B, n * {chunk_samples}] samples. "
            "Buffer until a chunk is whole, and pad the last one with zeros."
        )
    if not _is_float(chunk):
        raise InputError(f"encode_step: chunk has type {chunk.dtype}; scale integers to floats in [-1, 1] first")
    _check_streams(len(chunk), streams)
    check_samples(chunk, "encode_step: chunk")


def check_token_chunks(tokens: Any, tokens_per_chunk: int, streams: int) -> None:
    """Raise InputError unless checked tokens are [B, n * tokens_per_chunk] for a state of that many streams."""
    if tokens.shape[1] % tokens_per_chunk:
        raise InputError(
            f"decode_step: {tokens.shape[1]} tokens are not a whole number of chunks of {tokens_per_chunk}. "
            "Buffer until a chunk is whole, and fill the last one with -1."
        )
    _check_streams(len(tokens), streams)


def check_count(value: Any, name: str, unit: str) -> int:
    """A number of at least 1, of `unit`, as a plain integer. Raises InputError."""
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1:
        raise InputError(f"{name} is {value!r}; expected a whole number, at least 1 {unit}")
    return count


def check_state(state: Any, kind: type, step: str) -> None:
    """Raise InputError unless `state`, given to `step`, is of the kind that this codec's `init_state` makes."""
    if not isinstance(state, kind):
        raise InputError(
            f"{step}: the state is a {type(state).__name__}; expected the {kind.__name__} that init_state of the same "
            "codec, or the step before, returned"
        )


def _check_streams(batch: int, streams: int) -> None:
    if batch != streams:
        raise InputError(
            f"step: {batch} streams, but the state is of {streams}; give each batch the state that init_state or its "
            "own last step returned"
        )


def _is_float(x: Any) -> bool:
    return _type_name(x).startswith(("float", "bfloat"))


def _is_integer(x: Any) -> bool:
    return _type_name(x).startswith(("int", "uint"))


def _type_name(x: Any) -> str:
    """The name of its element type: PyTorch and NumPy agree on them, but for a prefix."""
    return str(x.dtype).removeprefix("torch.")
