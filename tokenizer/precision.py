"""Which engine runs which precision; a codec's weights in bfloat16, and what comes of it in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenizer.devices import check_device
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer.model import Codec

ENGINES = {"torch": ("fp32", "bf16"), "onnx": ("fp32", "int8")}


def check_engine(engine: str, precision: str, device: str) -> None:
    """Raise InputError unless there is such an engine and it runs that precision on that device."""
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r}: expected one of {', '.join(ENGINES)}")
    if precision not in ENGINES[engine]:
        able = [other for other, precisions in ENGINES.items() if precision in precisions]
        hint = f'; {precision} needs engine="{able[0]}"' if able else ""
        raise InputError(f'precision {precision!r}: engine "{engine}" runs {" and ".join(ENGINES[engine])}{hint}')
    check_device(device)
    if engine == "onnx" and torch.device(device).type != "cpu":
        raise InputError(f'device {device!r}: engine "onnx" runs on the CPU; use engine="torch" there')


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
