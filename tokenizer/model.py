"""The codec's model: wave <-> tokens, whole utterances or live streams, over one code path.

It is given its weights; `tokenizer.codec` finds them by name.

Legend: B batch, S samples, T tokens, N samples or tokens of a step, D feature channels.
"""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from tokenizer import checkpoint, inputs
from tokenizer.chunks import in_pieces, whole_chunks
from tokenizer.config import CodecConfig
from tokenizer.network.decoder import Decoder
from tokenizer.network.encoder import Encoder, LogMelStem
from tokenizer.network.focal import Compressor, Decompressor
from tokenizer.network.fourier import FourierHead
from tokenizer.network.padding import present
from tokenizer.network.quantizer import BinarySphericalQuantizer
from tokenizer.network.stage_configs import VocosConfig
from tokenizer.network.vocos import Vocos
from tokenizer.rates import Rates, token_count

OFFLINE_FRAMES = 512  # frames of one `step` when a whole utterance is processed: bounds memory, 10 s at 50 Hz

Model = TypeVar("Model", bound="CodecModel")


class Voice(Protocol):
    """A voice to convert to, such as `tokenizer.conversion.Voice`."""

    def nearest(self, features: Tensor) -> Tensor:
        """The decoder's input features [B, T, D] in this voice, same shape."""
        ...


class CodecState(NamedTuple):
    """The state of a batch of live streams, for `encode_step` and `decode_step`; every leaf is [B, ...]."""

    encoder: Encoder.State
    compressor: Compressor.State
    decompressor: Decompressor.State
    decoder: Decoder.State

    @property
    def batch_size(self) -> int:
        """The number of streams."""
        return len(self.encoder.encoder.position)


class CodecModel(Rates, nn.Module):
    """A speech codec of the streaming FocalCodec-Stream family (arXiv 2509.16195) or the FocalCodec family for whole
    utterances (arXiv 2502.04465).

        codec = tokenizer.Codec.from_pretrained("small")
        tokens = codec.encode(wave)      # [B, S] at codec.sample_rate_in -> int64 [B, codec.token_count(S)]
        wave = codec.decode(tokens)      # [B, T] -> [B, T * codec.samples_per_token] at codec.sample_rate_out

    The tokens of an utterance do not depend on what else is in the batch, on padding, or, where the codec streams, on
    how its audio is cut into chunks.

    The families differ at the end of an utterance. A streaming codec pads audio with zeros to a whole number of chunks
    and trims the tokens to ceil(S / hop). A codec for whole utterances computes a feature frame every 320 samples, each
    from 400 samples. So up to 319 samples (20 ms) at the end are in no token: 4 s give 199 tokens at 50 Hz. At 25 and
    12.5 Hz the last token is filled with zero frames. Audio shorter than 400 samples still gives one token. Every frame
    depends on the whole utterance, so a piece of an utterance does not have the tokens that it has within the whole.
    """

    def __init__(self, config: CodecConfig, name: str = "unnamed") -> None:
        super().__init__()
        self.config = config
        self.name = name
        self.encoder = Encoder(config.encoder)
        self.compressor = Compressor(config.compressor)
        self.quantizer = BinarySphericalQuantizer(config.quantizer)
        self.decompressor = Decompressor(config.decompressor)
        self.decoder = Vocos(config.decoder) if isinstance(config.decoder, VocosConfig) else Decoder(config.decoder)
        self.eval()

    # ---- identity -------------------------------------------------------------------------------------------------

    @classmethod
    def with_weights(cls: type[Model], config: CodecConfig, weights: dict[str, Tensor], name: str) -> Model:
        """A codec for use, without gradients.

        Args:
            weights: by published name; they are stored as float32.
            name: what to call the codec.

        Raises:
            InputError: weights that are missing, of other shapes, not finite or unknown.
        """
        checkpoint.check_size(config, weights, source=f"codec {name}")
        codec = cls(config, name)
        checkpoint.assign(codec, weights, source=f"codec {name}")
        return codec.requires_grad_(False)

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors, each atomically.

        Args:
            directory: made when missing.
            dtype: store weights in this type (float16 halves the file); None keeps the module's own.
        """
        checkpoint.save(self.config, self.state_dict(), Path(directory), dtype)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over configuration and weights as float32, in hex: the identity of the token space."""
        return checkpoint.fingerprint(self.config, self.state_dict())

    @property
    def dtype(self) -> torch.dtype:
        """The type of the decoder's head and of waves; a spectral head stays float32 with bfloat16 weights."""
        return self.decoder.head.proj.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.head.proj.weight.device

    # ---- whole utterances -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Wave to tokens.

        Args:
            wave: [B, S] or [S], at `sample_rate_in`, in [-1, 1].
            lengths: int64 [B], samples of each row that count; None: all.

        Returns:
            int64 [B, token_count(S)]; a row shorter than the longest ends in -1.

        Raises:
            InputError: for another shape, an empty or non-finite wave, lengths outside 1..S, or more than 30 minutes
                for a codec that does not stream.
        """
        wave = inputs.check_wave(torch.as_tensor(wave, device=self.device), self.sample_rate_in)
        return self.encode_whole_checked(wave, inputs.check_lengths(lengths, wave))

    @torch.no_grad()
    def decode(self, tokens: Tensor, voice: Voice | None = None) -> Tensor:
        """Tokens to wave.

        Args:
            tokens: int64 [B, T] or [T]; -1 at the end of a row is padding and becomes silence.
            voice: convert to this voice; None keeps the speaker's own.

        Returns:
            [B, T * samples_per_token] at `sample_rate_out`, in [-1, 1].

        Raises:
            InputError: for another shape or a token outside the codebook.
        """
        tokens = self._checked(tokens)
        if not self.causal:
            features, frames = self._dequantize_whole(tokens)
            features = features if voice is None else voice.nearest(features)
            audible = (tokens >= 0).repeat_interleave(self.samples_per_token, dim=1)
            return widened(self.decoder(features, frames)) * audible
        padded = whole_chunks(tokens, self.tokens_per_chunk, inputs.NO_TOKEN)
        step = partial(self.decode_checked, voice=voice)
        wave = in_pieces(step, padded, self.init_state(len(tokens)), self._offline_tokens)
        return wave[:, : tokens.shape[1] * self.samples_per_token]

    @torch.no_grad()
    def features(self, wave: Tensor) -> Tensor:
        """Wave [B, S] or [S] -> features [B, T, D] of the encoder, a frame for each 320 samples."""
        wave = inputs.check_wave(torch.as_tensor(wave, device=self.device), self.sample_rate_in)
        lengths = torch.full((len(wave),), wave.shape[1], device=wave.device)
        hop = self.config.encoder.hop_samples
        return self._features(wave, lengths)[0][:, : token_count(wave.shape[1], hop, self.first_samples)]

    @torch.no_grad()
    def latents(self, features: Tensor) -> Tensor:
        """Features [B, T, D] -> latents [B, T, bits] on the unit sphere, whose signs are the codes."""
        frames = torch.full((len(features),), features.shape[1], device=features.device)
        return self.quantizer.normalize(self._latents(features, frames))

    @torch.no_grad()
    def codes(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] -> codes [B, T, bits] of +-1/sqrt(bits)."""
        return self.quantizer.codes(self._checked(tokens), self.dtype)

    @torch.no_grad()
    def dequantize(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] -> the decoder's input features [B, T, D]."""
        tokens = self._checked(tokens)
        if not self.causal:
            return self._dequantize_whole(tokens)[0]
        padded = whole_chunks(tokens, self.tokens_per_chunk, inputs.NO_TOKEN)
        state = self.decompressor.init_state(len(tokens))
        x = in_pieces(self._dequantize_step, padded, state, self._offline_tokens)
        return x[:, : tokens.shape[1] * self.decompressor.upscale]

    # ---- live streams ---------------------------------------------------------------------------------------------

    def init_state(self, batch_size: int) -> CodecState:
        """The initial state of `batch_size` streams, on the codec's device.

        Raises:
            InputError: the codec does not stream, or `batch_size` is not a whole number of at least 1.
        """
        self.check_causal()
        batch_size = inputs.check_count(batch_size, "init_state: batch_size", "stream")
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
            InputError: when the samples are not whole chunks of finite floats, or the state is not of this codec and
                batch.
        """
        self.check_causal()
        inputs.check_state(state, CodecState, "encode_step")
        chunk = torch.as_tensor(chunk)
        inputs.check_chunk(chunk, self.chunk_samples, state.batch_size)
        return self.encode_checked(chunk, state)

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
            InputError: when the tokens are not whole chunks, a token is outside the codebook, or the state is not of
                this codec and batch.
        """
        self.check_causal()
        inputs.check_state(state, CodecState, "decode_step")
        tokens = self._checked(tokens)
        inputs.check_token_chunks(tokens, self.tokens_per_chunk, state.batch_size)
        return self.decode_checked(tokens, state, voice)

    def encode_whole_checked(self, wave: Tensor, lengths: list[int]) -> Tensor:
        """`encode` of a wave [B, S] on the codec's device, without its checks and with gradients. On a GPU a codec that
        streams only queues work."""
        counted = [self.token_count(samples) for samples in lengths]
        sent, counts = queued([lengths, counted], wave.device)
        features, frames = self._features(wave, sent)
        tokens = self.quantizer.tokens(self._latents(features, frames))[:, : max(counted)]
        return tokens.masked_fill(~present(counts, max(counted)), inputs.NO_TOKEN)

    def encode_checked(self, chunk: Tensor, state: CodecState) -> tuple[Tensor, CodecState]:
        """`encode_step` without its checks and with gradients: tensor operations alone."""
        features, encoder_state = self.encoder.step(chunk.to(self.device, self.dtype), state.encoder)
        latents, compressor_state = self.compressor.step(features, state.compressor)
        return self.quantizer.tokens(latents), state._replace(encoder=encoder_state, compressor=compressor_state)

    def decode_checked(
        self, tokens: Tensor, state: CodecState, voice: Voice | None = None
    ) -> tuple[Tensor, CodecState]:
        """`decode_step` without its checks and with gradients."""
        present = tokens >= 0
        x, decompressor_state = self._dequantize_step(tokens, state.decompressor)
        if voice is not None:
            x = voice.nearest(x)
        wave, decoder_state = self.decoder.step(x, state.decoder)
        wave = widened(wave) * present.repeat_interleave(self.samples_per_token, dim=1)
        return wave, state._replace(decompressor=decompressor_state, decoder=decoder_state)

    # ---- inside ---------------------------------------------------------------------------------------------------

    @property
    def _offline_tokens(self) -> int:
        return OFFLINE_FRAMES // self.config.encoder.chunk_frames * self.tokens_per_chunk

    def _checked(self, tokens: Tensor) -> Tensor:
        """Tokens of [B, T] or [T] as int64 [B, T] on the codec's device. Raises InputError."""
        given = torch.as_tensor(tokens, device=self.device)
        if given.dtype == torch.uint16:  # that of shards, for which PyTorch has no min
            given = given.int()
        return inputs.check_tokens(given, self.codebook_size).long()

    def _features(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Checked wave [B, S] -> features, and the frames of each row that count (all, of a codec that streams)."""
        if not self.causal:
            self.check_length(wave.shape[1], "encode")
            return self.encoder(wave.to(self.dtype), lengths)
        wave = wave.to(self.dtype).masked_fill(~present(lengths, wave.shape[1]), 0)
        wave = whole_chunks(wave, self.chunk_samples, 0)
        piece = OFFLINE_FRAMES // self.config.encoder.chunk_frames * self.chunk_samples
        features = in_pieces(self.encoder.step, wave, self.encoder.init_state(len(wave)), piece)
        return features, torch.full_like(lengths, features.shape[1])

    def _latents(self, features: Tensor, frames: Tensor) -> Tensor:
        if not self.causal:
            return self.compressor(features, frames)[0]
        return self.compressor.step(features, self.compressor.init_state(len(features)))[0]

    def _dequantize_whole(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Checked tokens of whole utterances -> features, and the frames of each row that count."""
        ends = ((tokens >= 0) * torch.arange(1, tokens.shape[1] + 1, device=tokens.device)).amax(1)
        return self.decompressor(self.quantizer.codes(tokens, self.dtype), ends.clamp(min=1))

    def _dequantize_step(self, tokens: Tensor, state: Decompressor.State) -> tuple[Tensor, Decompressor.State]:
        codes = self.quantizer.codes(tokens, self.decompressor.in_proj.weight.dtype)
        return self.decompressor.step(codes, tokens >= 0, state)


def to_bfloat16(codec: Model) -> Model:
    """Convert the weights to bfloat16, except in layers that compute spectra, which need more precision."""
    _ = codec.fingerprint  # computed and kept while the weights are what they were
    exact = {id(part) for m in codec.modules() if isinstance(m, (LogMelStem, FourierHead)) for part in m.modules()}
    for module in codec.modules():
        if id(module) in exact:
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(torch.bfloat16)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(module, name, buffer.to(torch.bfloat16))
    return codec


def queued(numbers: list[int] | list[list[int]], device: torch.device) -> Tensor:
    """int64 on a device. On a GPU the copy is queued behind the work there: one from memory that is not pinned would
    wait for it."""
    here = torch.tensor(numbers)
    return here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else here.to(device)


def widened(wave: Tensor) -> Tensor:
    """A wave in at least float32."""
    return wave.to(torch.promote_types(wave.dtype, torch.float32))
