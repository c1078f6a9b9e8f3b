"""What the quantizer costs: the same decoder fed what was not quantized.

Legend: S samples, T tokens, N tokens of whole chunks, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenizer import Codec
from tokenizer.chunks import whole_chunks


@torch.no_grad()
def from_latents(codec: Codec, wave: Tensor) -> Tensor:
    """Wave [1, S] through encoder, compressor, decompressor and decoder, latents normalised but not binarised.

    Returns:
        [1, T * samples_per_token], as `codec.decode` gives.
    """
    features, present = _features(codec, wave)
    latents = codec.latents(features)
    if not codec.causal:
        lengths = torch.tensor([latents.shape[1]], device=latents.device)
        return codec.decoder(*codec.decompressor(latents, lengths))
    x, _ = codec.decompressor.step(latents * present[..., None], present, codec.decompressor.init_state(1))
    return _decoded(codec, x, present)


@torch.no_grad()
def from_features(codec: Codec, wave: Tensor) -> Tensor:
    """The same with the encoder's features straight into the decoder; see `features_fit`."""
    features, present = _features(codec, wave)
    if not codec.causal:
        return codec.decoder(features, torch.tensor([features.shape[1]], device=features.device))
    kept = present.repeat_interleave(codec.frames_per_token, dim=1)
    return _decoded(codec, features * kept[..., None], present)


def features_fit(codec: Codec) -> bool:
    """Whether the decoder takes vectors of the encoder's size."""
    return codec.config.encoder.dim == codec.config.decoder.input_dim


def _features(codec: Codec, wave: Tensor) -> tuple[Tensor, Tensor]:
    """Features of the wave in whole chunks, where the codec has them, and which tokens [1, N] hold some of it."""
    tokens = codec.token_count(wave.shape[1])
    if not codec.causal:
        return codec.features(wave), torch.ones(1, tokens, dtype=torch.bool)
    wave = whole_chunks(wave, codec.chunk_samples, 0)
    features = codec.features(wave)
    return features, torch.arange(codec.token_count(wave.shape[1]), device=features.device)[None] < tokens


def _decoded(codec: Codec, x: Tensor, present: Tensor) -> Tensor:
    wave, _ = codec.decoder.step(x, codec.decoder.init_state(1))  # type: ignore[operator]
    return wave[:, : int(present.sum()) * codec.samples_per_token].float()
