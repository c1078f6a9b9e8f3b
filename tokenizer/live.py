"""Live pipes: raw 16-bit PCM in, raw 16-bit tokens out, and back, a chunk at a time.

PCM is mono, little-endian, at the codec's rate. Tokens are little-endian uint16, one a token, no header.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.inputs import NO_TOKEN
from tokenizer.model import Codec


def encode_pipe(codec: Codec, pcm: BinaryIO, tokens: BinaryIO) -> int:
    """Read PCM until it ends; write tokens after each chunk. Returns the number of samples read.

    Raises:
        InputError: when the pipe brings no whole sample.
    """
    state, total = codec.init_state(1), 0
    for samples in read_pcm(pcm, codec.chunk_samples):
        total += len(samples)
        chunk = torch.zeros(1, codec.chunk_samples)
        chunk[0, : len(samples)] = samples
        codes, state = codec.encode_step(chunk, state)
        kept = codec.token_count(len(samples))
        tokens.write(codes[0, :kept].cpu().numpy().astype("<u2").tobytes())
        tokens.flush()
    return total


def decode_pipe(codec: Codec, tokens: BinaryIO, pcm: BinaryIO) -> int:
    """Read tokens until they end; write PCM after each chunk. Returns the number of tokens read.

    Raises:
        InputError: when the pipe brings no token, or one outside the codebook.
    """
    state, total = codec.init_state(1), 0
    for block in _blocks(tokens, codec.tokens_per_chunk):
        total += len(block)
        chunk = torch.full((1, codec.tokens_per_chunk), NO_TOKEN)
        chunk[0, : len(block)] = torch.from_numpy(block.view("<u2").astype(np.int64))
        wave, state = codec.decode_step(chunk, state)
        pcm.write(to_pcm(wave[0, : len(block) * codec.samples_per_token].cpu().numpy()))
        pcm.flush()
    if not total:
        raise InputError("standard input: no tokens; expected raw little-endian uint16")
    return total


def read_pcm(pipe: BinaryIO, size: int) -> Iterator[Tensor]:
    """Float samples [size] in [-1, 1] as they come in; the last may be fewer.

    Raises:
        InputError: when the pipe ends without a whole sample.
    """
    block = None
    for block in _blocks(pipe, size):
        yield torch.from_numpy(block.astype(np.float32) / 32768)
    if block is None:
        raise InputError("standard input: no audio; expected raw 16-bit little-endian mono PCM")


def to_pcm(wave: np.ndarray) -> bytes:
    """Float samples [S] in [-1, 1] as 16-bit little-endian PCM."""
    return np.rint(np.clip(wave, -1.0, 1.0) * 32767).astype("<i2").tobytes()


def _blocks(pipe: BinaryIO, size: int) -> Iterator[np.ndarray]:
    """int16 blocks of `size` values, the last one shorter; an odd byte at the end is no value and is dropped."""
    while data := pipe.read(2 * size):
        while len(data) < 2 * size and (more := pipe.read(2 * size - len(data))):
            data += more
        if block := data[: len(data) // 2 * 2]:
            yield np.frombuffer(block, dtype="<i2")
