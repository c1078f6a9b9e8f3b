"""AUDIO <-> TOKENS: the streaming speech codec."""

from typing import TYPE_CHECKING, Any

from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer.codec import Codec
    from tokenizer.config import CodecConfig
    from tokenizer.model import CodecState

__all__ = ["Codec", "CodecConfig", "CodecState", "InputError"]


def __getattr__(name: str) -> Any:
    """Import PyTorch when a codec is first asked for: the command line lists its commands without it."""
    if name in ("Codec", "CodecState"):
        from tokenizer import codec

        return getattr(codec, name)
    if name == "CodecConfig":
        from tokenizer.config import CodecConfig

        return CodecConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
