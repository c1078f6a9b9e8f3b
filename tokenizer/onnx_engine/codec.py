"""The codec on ONNX Runtime: `Codec` for those who encode and decode on a CPU, several times as fast.

Legend: B batch, S samples, T tokens, n chunks.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.inputs import NO_TOKEN, check_chunk, check_token_chunks, check_tokens, check_wave
from tokenizer.onnx_engine.export import check_precision, missing
from tokenizer.onnx_engine.manifest import MANIFEST, Manifest
from tokenizer.onnx_engine.runtime import StepRunner
from tokenizer.padding import present
from tokenizer.pieces import in_pieces, whole_chunks
from tokenizer.rates import Rates

LEAST_PIECE, LARGEST_PIECE = 16, 32  # chunks of one step when whole utterances are processed, of many rows and of one
CPU = torch.device("cpu")


class OnnxState(NamedTuple):
    """The state of a batch of live streams: NumPy arrays [B, ...], the first of each direction being the position."""

    encoder: tuple[np.ndarray, ...]
    decoder: tuple[np.ndarray, ...]

    @property
    def batch_size(self) -> int:
        """Streams it is the state of."""
        return len(self.encoder[0])


class OnnxCodec(Rates):
    """A streaming codec from an exported folder; as `Codec`, but no `nn.Module` and without the stages in between.

    It runs on as many CPU threads as PyTorch had been given when it was made (`torch.set_num_threads`). In 8 bits some
    tokens are not those of the float32 codec, but it carries the same fingerprint: the token space is the same. There,
    too, rows of a batch do not share a scale; but a last digit that float32 rounds otherwise in another batch or cut of
    the audio may move a value to the next of 256, so that bits flip more often than in float32.

    Args:
        folder: as `tokenizer.onnx_engine.export.export` writes it.
        precision: what the folder is expected to hold.
        name: what to call the codec.

    Raises:
        InputError: when the folder is damaged, holds another precision, or the package `onnxruntime` is missing.
    """

    def __init__(self, folder: Path, precision: str, name: str) -> None:
        manifest = Manifest.read(folder)
        check_precision(precision)
        if manifest.precision != precision:
            raise InputError(
                f"codec {name}: was exported as {manifest.precision}, not {precision}; load it with "
                f'precision="{manifest.precision}", or export it again'
            )
        self.config, self.name = manifest.config, name
        self.fingerprint, self.precision = manifest.fingerprint, precision
        try:
            import onnxruntime  # noqa: F401
        except ImportError:
            raise missing("onnxruntime") from None
        threads = torch.get_num_threads()
        self._encoder = StepRunner(folder / "encode_step.onnx", manifest.encode_states, "wave", "tokens", threads)
        self._decoder = StepRunner(folder / "decode_step.onnx", manifest.decode_states, "tokens", "wave", threads)

    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Wave [B, S] or [S] to tokens int64 [B, token_count(S)]; see `Codec.encode`."""
        wave, lengths = check_wave(wave, lengths, self.sample_rate_in, CPU)
        wave = whole_chunks(wave.masked_fill(~present(lengths, wave.shape[1]), 0), self.chunk_samples, 0)
        piece = _piece(len(wave)) * self.chunk_samples
        tokens = in_pieces(self._encode_step, wave, self._encoder.init_state(len(wave)), piece)
        counts = torch.tensor([self.token_count(samples) for samples in lengths.tolist()])
        longest = int(counts.max())
        return tokens[:, :longest].masked_fill(~present(counts, longest), NO_TOKEN)

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] or [T] to wave float32 [B, T * samples_per_token]; see `Codec.decode`."""
        tokens = check_tokens(tokens, self.codebook_size, CPU)
        padded = whole_chunks(tokens, self.tokens_per_chunk, NO_TOKEN)
        piece = _piece(len(tokens)) * self.tokens_per_chunk
        wave = in_pieces(self._decode_step, padded, self._decoder.init_state(len(tokens)), piece)
        return wave[:, : tokens.shape[1] * self.samples_per_token]

    def init_state(self, batch_size: int) -> OnnxState:
        """The state of `batch_size` streams that have not begun."""
        return OnnxState(self._encoder.init_state(batch_size), self._decoder.init_state(batch_size))

    def encode_step(self, chunk: Tensor, state: OnnxState) -> tuple[Tensor, OnnxState]:
        """The next chunks [B, n * chunk_samples] of streams to tokens, and the next state; see `Codec.encode_step`."""
        check_chunk(chunk, self.chunk_samples, state.batch_size)
        tokens, following = self._encode_step(chunk, state.encoder)
        return tokens, state._replace(encoder=following)

    def decode_step(self, tokens: Tensor, state: OnnxState) -> tuple[Tensor, OnnxState]:
        """The next tokens [B, n * tokens_per_chunk] to wave, and the next state; see `Codec.decode_step`."""
        tokens = check_tokens(tokens, self.codebook_size, CPU)
        check_token_chunks(tokens, self.tokens_per_chunk, state.batch_size)
        wave, following = self._decode_step(tokens, state.decoder)
        return wave, state._replace(decoder=following)

    def _encode_step(self, wave: Tensor, state: tuple[np.ndarray, ...]) -> tuple[Tensor, tuple[np.ndarray, ...]]:
        x = wave.to(CPU, torch.float32).numpy()
        tokens, following = self._encoder.step(x, x.shape[1] // self.chunk_samples, state)
        return torch.from_numpy(tokens), following

    def _decode_step(self, tokens: Tensor, state: tuple[np.ndarray, ...]) -> tuple[Tensor, tuple[np.ndarray, ...]]:
        x = tokens.numpy()
        wave, following = self._decoder.step(x, x.shape[1] // self.tokens_per_chunk, state)
        return torch.from_numpy(wave), following


def _piece(batch: int) -> int:
    """Chunks of one step over whole utterances: enough rows to keep the processor busy, few enough to hold."""
    return max(LEAST_PIECE, LARGEST_PIECE // batch)


def load(name: str, precision: str) -> OnnxCodec:
    """An exported folder, or any codec that `Codec.from_pretrained` finds, exported into the user's cache first."""
    from tokenizer.codec import Codec
    from tokenizer.onnx_engine.export import cached

    if (Path(name) / MANIFEST).is_file():
        return OnnxCodec(Path(name), precision, name)
    return OnnxCodec(cached(Codec.from_pretrained(name), precision), precision, name)
