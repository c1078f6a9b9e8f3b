"""`Codec`, the public face: a codec by name, on the engine and in the precision that are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

from tokenizer import checkpoint
from tokenizer.config import CodecConfig
from tokenizer.errors import InputError
from tokenizer.machine import check_engine
from tokenizer.model import CodecModel, CodecState, to_bfloat16
from tokenizer.onnx_engine.manifest import MANIFEST

if TYPE_CHECKING:
    from tokenizer.onnx_engine.codec import OnnxCodec

__all__ = ["Codec", "CodecState"]


class Codec(CodecModel):
    __doc__ = CodecModel.__doc__

    @classmethod
    def from_config(cls, config: CodecConfig | dict[str, Any]) -> Codec:
        """A codec with random weights."""
        return cls(config if isinstance(config, CodecConfig) else CodecConfig.from_dict(config))

    @overload
    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        device: str | torch.device = "cpu",
        engine: Literal["torch"] = "torch",
        precision: str = "fp32",
    ) -> Codec: ...

    @overload
    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, device: str | torch.device = "cpu", *, engine: str, precision: str = "fp32"
    ) -> Codec | OnnxCodec: ...

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        device: str | torch.device = "cpu",
        engine: str = "torch",
        precision: str = "fp32",
    ) -> Codec | OnnxCodec:
        """Load a trained codec, ready to encode and decode.

        Args:
            name_or_path: the name of shipped weights ("small"); a folder with config.json and model.safetensors;
                a path `dir/name` or `dir/name.json` beside `dir/name.safetensors`; a Hugging Face Hub id; or, for the
                engine "onnx", a folder that `focalstream export` made.
            device: where the weights go.
            engine: "torch", or "onnx" for ONNX Runtime, which streams several times as fast on a CPU. The first time
                it exports the codec into the user's cache ($XDG_CACHE_HOME or ~/.cache, in focalstream/onnx).
            precision: "fp32"; "bf16" (torch only), for a GPU; or "int8" (onnx only). Other than "fp32" gives slightly
                different tokens of the same token space.

        Raises:
            InputError: when nothing is found there, what is found is not a codec of this family, there is no such
                device, or the engine is unknown, not installed, or does not run that precision there.
        """
        device, name = str(device), str(name_or_path)
        check_engine(engine, precision, device)
        if engine == "onnx":
            from tokenizer.onnx_engine.codec import load

            return load(name, precision)
        try:
            config, weights = checkpoint.load(name)
        except InputError:
            if (Path(name) / MANIFEST).is_file():
                raise InputError(
                    f'codec {name}: is an exported codec; run it with --engine onnx (in Python, engine="onnx")'
                ) from None
            raise
        codec = cls.with_weights(config, weights, name).to(device)
        return to_bfloat16(codec) if precision == "bf16" else codec
