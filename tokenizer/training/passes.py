"""The codec's way from wave to wave, differentiable, a whole batch of rows at once.

`Codec`'s own methods are for use (no gradient, any length in bounded memory); here each part is called for itself, over
rows of whole chunks, from the state of streams that have not begun.

Legend: B batch, S samples, T frames or tokens, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenizer.model import CodecModel
from tokenizer.network.comb import CombHead, Voice
from tokenizer.network.decoder import Decoder


def feature_layers(codec: CodecModel, wave: Tensor) -> list[Tensor]:
    """Wave [B, S] -> the output of every encoder layer, [B, T, D] each; the last are the features."""
    return codec.encoder.step_layers(wave, codec.encoder.init_state(len(wave)))[0]


def latents(codec: CodecModel, features: Tensor) -> Tensor:
    """Features [B, T, D] -> latents [B, T, bits] on the unit sphere, in float32."""
    raw, _ = codec.compressor.step(features, codec.compressor.init_state(len(features)))
    return codec.quantizer.normalize(raw.float())


def dequantized(codec: CodecModel, latents: Tensor, binarise: bool = True) -> Tensor:
    """Latents [B, T, bits] -> the features of their codes [B, T, D]; the gradient passes the quantizer unchanged.

    Without `binarise`, the features of the latents themselves.
    """
    codes = codec.quantizer.straight_through(latents) if binarise else latents
    present = torch.ones(codes.shape[:2], dtype=torch.bool, device=codes.device)
    return codec.decompressor.step(codes, present, codec.decompressor.init_state(len(codes)))[0]


def waveform(codec: CodecModel, features: Tensor) -> tuple[Tensor, Voice | None]:
    """Features [B, T, D] -> wave [B, S'] at the output rate, in float32, and what a comb head says of the voice; the
    wave is as it is before the comb filter."""
    decoder = codec.decoder
    assert isinstance(decoder, Decoder)  # codecs that do not stream are refused before training
    hidden, state = decoder.hidden(features, decoder.init_state(len(features)))
    voice: Voice | None = None
    if isinstance(decoder.head, CombHead):
        wave, voice = decoder.head.unfiltered(hidden, state.head)  # type: ignore[arg-type]
    else:
        wave, _ = decoder.head.step(hidden, state.head)  # type: ignore[arg-type]
    return wave.clamp(-1, 1).float(), voice
