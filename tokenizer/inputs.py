"""What a codec accepts: each check gives the input back in its one canonical form, or says what is wrong with it."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenizer.audio import LOUDEST
from tokenizer.errors import InputError

NO_TOKEN = -1  # fills a row after its last token; decodes to silence


def check_wave(wave: Tensor, lengths: Tensor | None, sample_rate: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Waves [B, S] or [S] and their lengths in samples (None: all) -> [B, S] and int64 [B]. Raises InputError."""
    wave = torch.as_tensor(wave, device=device)
    if wave.ndim == 1:
        wave = wave[None]
    if wave.ndim != 2 or not wave.is_floating_point():
        raise InputError(
            f"encode: wave has shape {tuple(wave.shape)} and type {wave.dtype}; expected floating point samples "
            f"[B, S] or [S] at {sample_rate} Hz. Mix channels down and scale integers to [-1, 1] first."
        )
    if wave.numel() == 0:
        raise InputError(f"encode: wave has shape {tuple(wave.shape)}; expected at least one sample")
    check_samples(wave, "encode: wave")
    if lengths is None:
        return wave, torch.full((wave.shape[0],), wave.shape[1], dtype=torch.int64, device=wave.device)
    lengths = torch.as_tensor(lengths, dtype=torch.int64, device=wave.device)
    if lengths.shape != wave.shape[:1] or lengths.min() < 1 or lengths.max() > wave.shape[1]:
        raise InputError(
            f"encode: lengths are {lengths.tolist()}; expected one number of samples per row ({wave.shape[0]}), "
            f"each from 1 to {wave.shape[1]}"
        )
    return wave, lengths


def check_samples(wave: Tensor, name: str) -> None:
    """Raise InputError where a wave holds NaN, infinite or absurdly loud samples."""
    peak = float(wave.abs().max())  # NaN where any sample is
    if not peak <= LOUDEST:
        raise InputError(
            f"{name} has a peak of {peak:g}; expected samples in about [-1, 1]. Scale it, or drop this recording "
            "where it holds NaN or infinite samples"
        )


def check_tokens(tokens: Tensor, codebook_size: int, device: torch.device) -> Tensor:
    """Integers [B, T] or [T] from -1 to codebook_size - 1 -> int64 [B, T]. Raises InputError."""
    tokens = torch.as_tensor(tokens, device=device)
    if tokens.ndim == 1:
        tokens = tokens[None]
    if tokens.ndim != 2 or tokens.shape[1] == 0 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise InputError(
            f"decode: tokens have shape {tuple(tokens.shape)} and type {tokens.dtype}; expected integers [B, T]"
        )
    tokens = tokens.long()
    low, high = int(tokens.min()), int(tokens.max())
    if low < NO_TOKEN or high >= codebook_size:
        raise InputError(
            f"decode: tokens range from {low} to {high}; this codec knows 0 to {codebook_size - 1} "
            "(and -1 for filling). Were they made by another codec?"
        )
    return tokens


def check_chunk(chunk: Tensor, chunk_samples: int, streams: int) -> None:
    """Raise InputError unless it is [B, n * chunk_samples] of finite floats for a state of that many streams."""
    if chunk.ndim != 2 or chunk.shape[1] == 0 or chunk.shape[1] % chunk_samples:
        raise InputError(
            f"encode_step: chunk has shape {tuple(chunk.shape)}; expected [B, n * {chunk_samples}] samples. "
            "Buffer until a chunk is whole, and pad the last one with zeros."
        )
    if not chunk.is_floating_point():
        raise InputError(f"encode_step: chunk has type {chunk.dtype}; scale integers to floats in [-1, 1] first")
    check_samples(chunk, "encode_step: chunk")
    _check_streams(len(chunk), streams)


def check_token_chunks(tokens: Tensor, tokens_per_chunk: int, streams: int) -> None:
    """Raise InputError unless checked tokens are [B, n * tokens_per_chunk] for a state of that many streams."""
    if tokens.shape[1] % tokens_per_chunk:
        raise InputError(
            f"decode_step: {tokens.shape[1]} tokens are no whole number of chunks of {tokens_per_chunk}. "
            "Buffer until a chunk is whole, and fill the last one with -1."
        )
    _check_streams(len(tokens), streams)


def _check_streams(batch: int, streams: int) -> None:
    if batch != streams:
        raise InputError(
            f"step: {batch} streams, but the state is of {streams}; give each batch the state that init_state or its "
            "own last step returned"
        )
