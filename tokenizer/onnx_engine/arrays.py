"""An exported codec on NumPy arrays: nothing here needs PyTorch, whose import alone takes 180 MB.

Legend: B batch, S samples, T tokens, n chunks.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tokenizer.chunks import in_pieces
from tokenizer.errors import InputError
from tokenizer.inputs import (
    NO_TOKEN,
    check_chunk,
    check_count,
    check_lengths,
    check_state,
    check_token_chunks,
    check_tokens,
    check_wave,
)
from tokenizer.machine import sums_bytes
from tokenizer.onnx_engine.manifest import Manifest, check_precision
from tokenizer.onnx_engine.runtime import StepRunner
from tokenizer.rates import Rates

LEAST_PIECE, LARGEST_PIECE = 16, 32  # chunks of one step when whole utterances are processed, of many rows and of one


class OnnxState(NamedTuple):
    """The state of a batch of live streams: NumPy arrays [B, ...], the first of each direction being the position."""

    encoder: tuple[np.ndarray, ...]
    decoder: tuple[np.ndarray, ...]

    @property
    def batch_size(self) -> int:
        """Streams it is the state of."""
        return len(self.encoder[0])


class ArrayCodec(Rates):
    """A streaming codec from an exported folder, for processes that do without PyTorch; as `Codec`, but on arrays.

        codec = ArrayCodec("folder", "int8")
        tokens = codec.encode(wave)      # float [B, S] at codec.sample_rate_in -> int64 [B, codec.token_count(S)]
        wave = codec.decode(tokens)      # int64 [B, T] -> float32 [B, T * codec.samples_per_token]

    Args:
        folder: as `focalstream export` writes it.
        precision: what the folder is expected to hold.
        threads: of the CPU; 0: as many as it has cores.
        name: what to call the codec; None: the folder.

    Raises:
        InputError: when the folder is damaged, holds another precision, or the package `onnxruntime` is missing. The
            methods raise it for what those of `Codec` do.
    """

    def __init__(self, folder: str | Path, precision: str, threads: int = 0, name: str | None = None) -> None:
        folder = Path(folder)
        manifest = Manifest.read(folder)
        self.config, self.name = manifest.config, str(folder) if name is None else name
        check_precision(precision)
        if manifest.precision != precision:
            raise InputError(
                f"codec {self.name}: was exported as {manifest.precision}, not {precision}; load it with "
                f'precision="{manifest.precision}", or export it again'
            )
        self.fingerprint, self.precision = manifest.fingerprint, precision
        if manifest.kernel == "signed" and not sums_bytes():
            warnings.warn(
                f"codec {self.name}: was exported on a processor whose 8-bit sums are exact; on this one they saturate "
                "and flip a twelfth of the bits. Export it again here",
                stacklevel=2,
            )
        self._encoder = StepRunner(folder / "encode_step.onnx", manifest.encode_states, "wave", "tokens", threads)
        self._decoder = StepRunner(folder / "decode_step.onnx", manifest.decode_states, "tokens", "wave", threads)

    def encode(self, wave: Any, lengths: Any = None) -> np.ndarray:
        """Wave [B, S] or [S] to tokens int64 [B, token_count(S)]; see `Codec.encode`."""
        wave = check_wave(np.asarray(wave), self.sample_rate_in)
        counted = check_lengths(lengths, wave)
        padded = np.zeros((len(wave), -(-wave.shape[1] // self.chunk_samples) * self.chunk_samples), dtype=np.float32)
        for row, length in enumerate(counted):
            padded[row, :length] = wave[row, :length]
        piece = _piece(len(wave)) * self.chunk_samples
        tokens = _in_pieces(self._encoder, padded, self.chunk_samples, piece)
        counts = [self.token_count(length) for length in counted]
        for row, count in enumerate(counts):
            tokens[row, count:] = NO_TOKEN
        return tokens[:, : max(counts)]

    def decode(self, tokens: Any) -> np.ndarray:
        """Tokens [B, T] or [T] to wave float32 [B, T * samples_per_token]; see `Codec.decode`."""
        tokens = check_tokens(np.asarray(tokens), self.codebook_size).astype(np.int64)
        filling = -tokens.shape[1] % self.tokens_per_chunk
        padded = np.pad(tokens, ((0, 0), (0, filling)), constant_values=NO_TOKEN)
        piece = _piece(len(tokens)) * self.tokens_per_chunk
        wave = _in_pieces(self._decoder, padded, self.tokens_per_chunk, piece)
        return wave[:, : tokens.shape[1] * self.samples_per_token]

    def init_state(self, batch_size: int) -> OnnxState:
        """The state of `batch_size` streams that have not begun."""
        batch_size = check_count(batch_size, "init_state: batch_size", "stream")
        return OnnxState(self._encoder.init_state(batch_size), self._decoder.init_state(batch_size))

    def encode_step(self, chunk: Any, state: OnnxState) -> tuple[np.ndarray, OnnxState]:
        """The next chunks [B, n * chunk_samples] of streams to tokens, and the next state; see `Codec.encode_step`."""
        check_state(state, OnnxState, "encode_step")
        chunk = np.asarray(chunk)
        check_chunk(chunk, self.chunk_samples, state.batch_size)
        chunk = chunk.astype(np.float32, copy=False)
        tokens, following = self._encoder.step(chunk, chunk.shape[1] // self.chunk_samples, state.encoder)
        return tokens, state._replace(encoder=following)

    def decode_step(self, tokens: Any, state: OnnxState) -> tuple[np.ndarray, OnnxState]:
        """The next tokens [B, n * tokens_per_chunk] to wave, and the next state; see `Codec.decode_step`."""
        check_state(state, OnnxState, "decode_step")
        tokens = check_tokens(np.asarray(tokens), self.codebook_size).astype(np.int64, copy=False)
        check_token_chunks(tokens, self.tokens_per_chunk, state.batch_size)
        wave, following = self._decoder.step(tokens, tokens.shape[1] // self.tokens_per_chunk, state.decoder)
        return wave, state._replace(decoder=following)


def _piece(batch: int) -> int:
    """Chunks of one step over whole utterances: enough rows to keep the processor busy, few enough to hold."""
    return max(LEAST_PIECE, LARGEST_PIECE // batch)


def _in_pieces(runner: StepRunner, x: np.ndarray, chunk: int, piece: int) -> np.ndarray:
    """The result of a graph over x [B, N] of whole chunks from the beginning, `piece` columns a step."""
    return in_pieces(
        lambda part, state: runner.step(part, part.shape[1] // chunk, state), x, runner.init_state(len(x)), piece
    )
