"""AUDIO <-> TOKENS: the streaming speech codec."""

from tokenizer.codec import Codec, CodecState
from tokenizer.config import CodecConfig
from tokenizer.errors import InputError

__all__ = ["Codec", "CodecConfig", "CodecState", "InputError"]
