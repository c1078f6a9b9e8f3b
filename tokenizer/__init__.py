"""AUDIO <-> TOKENS: the streaming speech codec."""

from typing import TYPE_CHECKING, Any

from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer.config import CodecConfig
    from tokenizer.model import Codec, CodecState

__all__ = ["Codec", "CodecConfig", "CodecState", "InputError"]


def __getattr__(name: str) -> Any:
    """Load PyTorch when a codec is first asked for, not when the command line lists its commands."""
    if name in ("Codec", "CodecState"):
        from tokenizer import model as codec

        return getattr(codec, name)
    if name == "CodecConfig":
        from tokenizer.config import CodecConfig

        return CodecConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
