"""Measures of a codec: of its sound, of its words, and of its tokens. Plain NumPy in, plain figures out."""

from tokenizer.metrics.intrusive import METRICS_RATE, speech_quality, why_not_measured

__all__ = ["METRICS_RATE", "speech_quality", "why_not_measured"]
