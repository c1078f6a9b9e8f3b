"""A codec's weights in bfloat16, and what comes of it in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokenizer.model import Codec


def to_bfloat16(codec: Codec) -> Codec:
    """Turn the weights to bfloat16, but for spectra, whose decades and phases need more digits than it has."""
    from tokenizer.network.decoder import FourierHead
    from tokenizer.network.encoder import LogMelStem

    _ = codec.fingerprint  # computed and kept while the weights are what they were
    codec.to(torch.bfloat16)
    for module in codec.modules():
        if isinstance(module, (LogMelStem, FourierHead)):
            module.float()
    return codec


def widened(wave: Tensor) -> Tensor:
    """A wave in at least float32, whatever precision made it."""
    return wave.to(torch.promote_types(wave.dtype, torch.float32))
