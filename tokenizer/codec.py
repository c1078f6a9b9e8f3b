"""The codec: wave <-> tokens, whole utterances or live streams, over one code path.

Legend: B batch, S samples, T tokens, N samples or tokens of a step, D feature channels.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenizer import checkpoint
from tokenizer.audio import LOUDEST
from tokenizer.config import ENCODER_SAMPLE_RATE, CodecConfig
from tokenizer.decoder import Decoder
from tokenizer.devices import check_device
from tokenizer.encoder import Encoder
from tokenizer.errors import InputError
from tokenizer.focal import Compressor, Decompressor
from tokenizer.quantizer import BinarySphericalQuantizer

if TYPE_CHECKING:
    from tokenizer.voice import Voice

NO_TOKEN = -1  # fills a row after its last token; decodes to silence
OFFLINE_FRAMES = 512  # frames of one `step` when a whole utterance is processed: bounds memory, 10 s at 50 Hz


class CodecState(NamedTuple):
    """The state of a batch of live streams, for `encode_step` and `decode_step`; every leaf is [B, ...]."""

    encoder: Encoder.State
    compressor: Compressor.State
    decompressor: Decompressor.State
    decoder: Decoder.State


class Codec(nn.Module):
    """A streaming speech codec of the FocalCodec-Stream family (arXiv 2509.16195).

        codec = Codec.from_pretrained("small")
        tokens = codec.encode(wave)      # [B, S] at codec.sample_rate_in -> int64 [B, ceil(S / hop)]
        wave = codec.decode(tokens)      # [B, T] -> [B, T * codec.samples_per_token] at codec.sample_rate_out

    The tokens of an utterance do not depend on what else is in the batch, on padding, or on how its audio is cut into
    chunks. Audio is padded with zeros to a whole number of chunks and the tokens are trimmed to ceil(S / hop).
    """

    def __init__(self, config: CodecConfig, name: str = "unnamed") -> None:
        super().__init__()
        self.config = config
        self.name = name
        self.encoder = Encoder(config.encoder)
        self.compressor = Compressor(config.compressor)
        self.quantizer = BinarySphericalQuantizer(config.quantizer)
        self.decompressor = Decompressor(config.decompressor)
        self.decoder = Decoder(config.decoder)
        self.eval()

    # ---- identity -------------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: CodecConfig | dict[str, Any]) -> Codec:
        """A codec with random weights."""
        return cls(config if isinstance(config, CodecConfig) else CodecConfig.from_dict(config))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, device: str | torch.device = "cpu") -> Codec:
        """Load a trained codec, ready to encode and decode.

        Args:
            name_or_path: the name of shipped weights ("small"); a directory with config.json and model.safetensors;
                a path `dir/name` or `dir/name.json` beside `dir/name.safetensors`; or a Hugging Face Hub id.
            device: where the weights go.

        Raises:
            InputError: when nothing is found there, what is found is not a codec of this family, or there is no such
                device.
        """
        check_device(str(device))
        config, weights = checkpoint.load(str(name_or_path))
        codec = cls(config, name=str(name_or_path))
        checkpoint.assign(codec, weights, source=str(name_or_path))
        return codec.to(device).requires_grad_(False)

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors, each atomically.

        Args:
            directory: made when missing.
            dtype: store weights in this type (float16 halves the file); None keeps the module's own.
        """
        checkpoint.save(self, Path(directory), dtype)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over configuration and weights as float32, in hex: the identity of the token space."""
        return checkpoint.fingerprint(self.config, self.state_dict())

    @property
    def sample_rate_in(self) -> int:
        """Hz."""
        return ENCODER_SAMPLE_RATE

    @property
    def sample_rate_out(self) -> int:
        """Hz."""
        return self.sample_rate_in * self.samples_per_token // self.hop_samples

    @property
    def hop_samples(self) -> int:
        """Input samples per token."""
        return self.config.encoder.hop_samples * (self.config.encoder.chunk_frames // self.tokens_per_chunk)

    @property
    def samples_per_token(self) -> int:
        """Output samples per token."""
        return self.config.decoder.hop_length * self.decompressor.upscale

    @property
    def tokens_per_chunk(self) -> int:
        """Tokens that a chunk of `chunk_samples` becomes."""
        return self.config.encoder.chunk_frames // self.decompressor.upscale

    @property
    def chunk_samples(self) -> int:
        """Input samples per chunk, the unit of streaming."""
        return self.config.encoder.chunk_frames * self.config.encoder.hop_samples

    @property
    def token_rate(self) -> float:
        """Tokens per second."""
        return self.sample_rate_in / self.hop_samples

    @property
    def codebook_size(self) -> int:
        return self.config.quantizer.codebook_size

    @property
    def bits_per_token(self) -> int:
        return self.config.quantizer.bits

    @property
    def bitrate(self) -> float:
        """Bits per second, before entropy coding."""
        return self.token_rate * self.bits_per_token

    @property
    def latency_ms(self) -> float:
        """Algorithmic latency: one chunk, in milliseconds."""
        return 1000 * self.chunk_samples / self.sample_rate_in

    # ---- whole utterances -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Wave to tokens.

        Args:
            wave: [B, S] or [S], at `sample_rate_in`, in [-1, 1].
            lengths: int64 [B], samples of each row that count; None: all.

        Returns:
            int64 [B, ceil(S / hop_samples)]; a row shorter than the longest ends in -1.

        Raises:
            InputError: for another shape, an empty or non-finite wave, or lengths outside 1..S.
        """
        wave, lengths = self._check_wave(wave, lengths)
        longest = -(-int(lengths.max()) // self.hop_samples)
        tokens = self.quantizer.tokens(self.latents(self._features(wave, lengths)))[:, :longest]
        ends = -(-lengths // self.hop_samples)
        return tokens.masked_fill(torch.arange(longest, device=tokens.device) >= ends[:, None], NO_TOKEN)

    @torch.no_grad()
    def decode(self, tokens: Tensor, voice: Voice | None = None) -> Tensor:
        """Tokens to wave.

        Args:
            tokens: int64 [B, T] or [T]; -1 at a row's end is filling and becomes silence.
            voice: convert to this voice; None keeps the speaker's own.

        Returns:
            [B, T * samples_per_token] at `sample_rate_out`, in [-1, 1].

        Raises:
            InputError: for another shape or a token outside the codebook.
        """
        tokens = self._check_tokens(tokens)
        pieces, state = [], self.init_state(tokens.shape[0])
        for piece in self._padded_tokens(tokens).split(self._offline_tokens, dim=1):
            wave, state = self._decode_step(piece, state, voice)
            pieces.append(wave)
        return torch.cat(pieces, dim=1)[:, : tokens.shape[1] * self.samples_per_token]

    @torch.no_grad()
    def features(self, wave: Tensor) -> Tensor:
        """Wave [B, S] or [S] -> features [B, ceil(S / 320), D] of the encoder."""
        wave, lengths = self._check_wave(wave, None)
        return self._features(wave, lengths)[:, : -(-wave.shape[1] // self.config.encoder.hop_samples)]

    @torch.no_grad()
    def latents(self, features: Tensor) -> Tensor:
        """Features [B, T, D] -> latents [B, T, bits] on the unit sphere, whose signs are the codes."""
        return self.quantizer.normalize(self.compressor.step(features, self.compressor.init_state(len(features)))[0])

    @torch.no_grad()
    def codes(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] -> codes [B, T, bits] of +-1/sqrt(bits)."""
        return self.quantizer.codes(self._check_tokens(tokens), self._dtype)

    @torch.no_grad()
    def dequantize(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] -> the decoder's input features [B, T, D]."""
        tokens = self._check_tokens(tokens)
        pieces, state = [], self.decompressor.init_state(tokens.shape[0])
        for piece in self._padded_tokens(tokens).split(self._offline_tokens, dim=1):
            x, state = self.decompressor.step(self.quantizer.codes(piece, self._dtype), piece >= 0, state)
            pieces.append(x)
        return torch.cat(pieces, dim=1)[:, : tokens.shape[1] * self.decompressor.upscale]

    # ---- live streams ---------------------------------------------------------------------------------------------

    def init_state(self, batch_size: int) -> CodecState:
        """The state of `batch_size` streams that have not begun, on the codec's device."""
        return CodecState(
            self.encoder.init_state(batch_size),
            self.compressor.init_state(batch_size),
            self.decompressor.init_state(batch_size),
            self.decoder.init_state(batch_size),
        )

    @torch.no_grad()
    def encode_step(self, chunk: Tensor, state: CodecState) -> tuple[Tensor, CodecState]:
        """The next chunks of a stream to tokens.

        Args:
            chunk: [B, n * chunk_samples].
            state: from `init_state` or the step before.

        Returns:
            int64 [B, n * tokens_per_chunk] and the next state.

        Raises:
            InputError: when the chunk is not whole, not finite floats, or of another batch than the state.
        """
        if chunk.ndim != 2 or chunk.shape[1] == 0 or chunk.shape[1] % self.chunk_samples:
            raise InputError(
                f"encode_step: chunk has shape {tuple(chunk.shape)}; expected [B, n * {self.chunk_samples}] samples "
                f"({self.latency_ms:g} ms each). Buffer until a chunk is whole, and pad the last one with zeros."
            )
        if not chunk.is_floating_point():
            raise InputError(f"encode_step: chunk has type {chunk.dtype}; scale integers to floats in [-1, 1] first")
        self._check_samples(chunk, "encode_step: chunk")
        self._check_streams(len(chunk), state)
        features, encoder_state = self.encoder.step(chunk.to(self._device, self._dtype), state.encoder)
        latents, compressor_state = self.compressor.step(features, state.compressor)
        return self.quantizer.tokens(latents), state._replace(encoder=encoder_state, compressor=compressor_state)

    @torch.no_grad()
    def decode_step(self, tokens: Tensor, state: CodecState, voice: Voice | None = None) -> tuple[Tensor, CodecState]:
        """The next tokens of a stream to wave.

        Args:
            tokens: int64 [B, n * tokens_per_chunk]; the last step of a stream may end in -1 (silence).
            state: from `init_state` or the step before.
            voice: convert to this voice; None keeps the speaker's own.

        Returns:
            [B, n * tokens_per_chunk * samples_per_token] and the next state.

        Raises:
            InputError: when the chunk is not whole, a token lies outside the codebook, or the state is of another
                batch.
        """
        tokens = self._check_tokens(tokens)
        if tokens.shape[1] % self.tokens_per_chunk:
            raise InputError(
                f"decode_step: {tokens.shape[1]} tokens are no whole number of chunks of {self.tokens_per_chunk}. "
                "Buffer until a chunk is whole, and fill the last one with -1."
            )
        self._check_streams(len(tokens), state)
        return self._decode_step(tokens, state, voice)

    # ---- inside ---------------------------------------------------------------------------------------------------

    @property
    def _dtype(self) -> torch.dtype:
        return self.decoder.head.proj.weight.dtype

    @property
    def _device(self) -> torch.device:
        return self.decoder.head.proj.weight.device

    @property
    def _offline_tokens(self) -> int:
        return OFFLINE_FRAMES // self.config.encoder.chunk_frames * self.tokens_per_chunk

    def _features(self, wave: Tensor, lengths: Tensor) -> Tensor:
        """Checked wave [B, S] -> features of whole chunks, with everything beyond a row's length silenced."""
        wave = wave.to(self._dtype).masked_fill(torch.arange(wave.shape[1], device=wave.device) >= lengths[:, None], 0)
        wave = nn.functional.pad(wave, (0, -wave.shape[1] % self.chunk_samples))
        pieces, state = [], self.encoder.init_state(wave.shape[0])
        for piece in wave.split(OFFLINE_FRAMES // self.config.encoder.chunk_frames * self.chunk_samples, dim=1):
            x, state = self.encoder.step(piece, state)
            pieces.append(x)
        return torch.cat(pieces, dim=1)

    def _decode_step(self, tokens: Tensor, state: CodecState, voice: Voice | None) -> tuple[Tensor, CodecState]:
        present = tokens >= 0
        codes = self.quantizer.codes(tokens, self._dtype)
        x, decompressor_state = self.decompressor.step(codes, present, state.decompressor)
        if voice is not None:
            x = voice.nearest(x)
        wave, decoder_state = self.decoder.step(x, state.decoder)
        wave = wave * present.repeat_interleave(self.samples_per_token, dim=1)
        return wave, state._replace(decompressor=decompressor_state, decoder=decoder_state)

    def _padded_tokens(self, tokens: Tensor) -> Tensor:
        return nn.functional.pad(tokens, (0, -tokens.shape[1] % self.tokens_per_chunk), value=NO_TOKEN)

    def _check_wave(self, wave: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        wave = torch.as_tensor(wave, device=self._device)
        if wave.ndim == 1:
            wave = wave[None]
        if wave.ndim != 2 or not wave.is_floating_point():
            raise InputError(
                f"encode: wave has shape {tuple(wave.shape)} and type {wave.dtype}; expected floating point samples "
                f"[B, S] or [S] at {self.sample_rate_in} Hz. Mix channels down and scale integers to [-1, 1] first."
            )
        if wave.numel() == 0:
            raise InputError(f"encode: wave has shape {tuple(wave.shape)}; expected at least one sample")
        self._check_samples(wave, "encode: wave")
        if lengths is None:
            return wave, torch.full((wave.shape[0],), wave.shape[1], dtype=torch.int64, device=wave.device)
        lengths = torch.as_tensor(lengths, dtype=torch.int64, device=wave.device)
        if lengths.shape != wave.shape[:1] or lengths.min() < 1 or lengths.max() > wave.shape[1]:
            raise InputError(
                f"encode: lengths are {lengths.tolist()}; expected one number of samples per row ({wave.shape[0]}), "
                f"each from 1 to {wave.shape[1]}"
            )
        return wave, lengths

    @staticmethod
    def _check_samples(wave: Tensor, name: str) -> None:
        peak = float(wave.abs().max())  # NaN where any sample is
        if not peak <= LOUDEST:
            raise InputError(
                f"{name} has a peak of {peak:g}; expected samples in about [-1, 1]. Scale it, or drop this recording "
                "where it holds NaN or infinite samples"
            )

    @staticmethod
    def _check_streams(batch: int, state: CodecState) -> None:
        if batch != len(state.encoder.encoder.position):
            raise InputError(
                f"step: {batch} streams, but the state is of {len(state.encoder.encoder.position)}; give each batch "
                "the state that init_state or its own last step returned"
            )

    def _check_tokens(self, tokens: Tensor) -> Tensor:
        tokens = torch.as_tensor(tokens, device=self._device)
        if tokens.ndim == 1:
            tokens = tokens[None]
        if tokens.ndim != 2 or tokens.shape[1] == 0 or tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise InputError(
                f"decode: tokens have shape {tuple(tokens.shape)} and type {tokens.dtype}; expected integers [B, T]"
            )
        tokens = tokens.long()
        low, high = int(tokens.min()), int(tokens.max())
        if low < NO_TOKEN or high >= self.codebook_size:
            raise InputError(
                f"decode: tokens range from {low} to {high}; this codec knows 0 to {self.codebook_size - 1} "
                "(and -1 for filling). Were they made by another codec?"
            )
        return tokens
