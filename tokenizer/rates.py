"""A codec's rates, sizes and latency, all derived from its configuration."""

from __future__ import annotations

import math

from tokenizer.config import CodecConfig
from tokenizer.errors import InputError
from tokenizer.network.stage_configs import ENCODER_SAMPLE_RATE

LONGEST_WHOLE = 30 * 60.0  # seconds; the work of attention over whole utterances grows with the square of their length


def token_count(samples: int, hop_samples: int, first_samples: int) -> int:
    """Tokens of `samples`, at least 1: one for each hop whose first `first_samples` samples are there."""
    return max(1, (samples - first_samples) // hop_samples + 1)


class Rates:
    """Properties of a codec with this `config` and `name`; no weights are needed."""

    config: CodecConfig
    name: str

    @property
    def causal(self) -> bool:
        """Whether the codec streams; one that does not takes whole utterances only."""
        return self.config.causal

    @property
    def sample_rate_in(self) -> int:
        """Hz."""
        return ENCODER_SAMPLE_RATE

    @property
    def sample_rate_out(self) -> int:
        """Hz."""
        return self.config.sample_rate_out

    @property
    def frames_per_token(self) -> int:
        """Encoder frames that share a token."""
        return math.prod(self.config.compressor.downscale_factors)

    @property
    def hop_samples(self) -> int:
        """Input samples per token."""
        return self.config.encoder.hop_samples * self.frames_per_token

    @property
    def samples_per_token(self) -> int:
        """Output samples per token."""
        return self.config.decoder.hop_length * self.frames_per_token

    @property
    def first_samples(self) -> int:
        """Samples of a hop that its token needs: 1 for a streaming codec, else the encoder's receptive field."""
        return 1 if self.causal else self.config.encoder.receptive_field

    def token_count(self, samples: int) -> int:
        """Tokens of an utterance of that many samples, at least 1."""
        return token_count(samples, self.hop_samples, self.first_samples)

    @property
    def tokens_per_chunk(self) -> int:
        """Tokens that a chunk of `chunk_samples` becomes. Raises InputError where the codec does not stream."""
        self.check_causal()
        return self.config.encoder.chunk_frames // self.frames_per_token

    @property
    def chunk_samples(self) -> int:
        """Input samples per chunk, the unit of streaming. Raises InputError where the codec does not stream."""
        self.check_causal()
        return self.config.encoder.chunk_frames * self.config.encoder.hop_samples

    def tokens_for(self, seconds: float) -> int:
        """Tokens of at least `seconds` of audio: a whole number of chunks, rounded up.

        Raises:
            InputError: where the codec does not stream.
        """
        chunk_seconds = self.tokens_per_chunk / self.token_rate
        # The small offset absorbs rounding of the division: 0.8 s are ten chunks of 80 ms.
        return math.ceil(seconds / chunk_seconds - 1e-9) * self.tokens_per_chunk

    @property
    def longest_seconds(self) -> float:
        """The longest audio that `encode` takes at once; infinity where the codec streams."""
        return math.inf if self.causal else LONGEST_WHOLE

    @property
    def token_rate(self) -> float:
        """Tokens per second."""
        return self.sample_rate_in / self.hop_samples

    @property
    def codebook_size(self) -> int:
        return self.config.quantizer.codebook_size

    @property
    def bits_per_token(self) -> int:
        return self.config.quantizer.bits

    @property
    def bitrate(self) -> float:
        """Bits per second, before entropy coding."""
        return self.token_rate * self.bits_per_token

    @property
    def latency_ms(self) -> float:
        """Algorithmic latency in milliseconds: one chunk; infinity for a codec that needs the whole utterance."""
        return 1000 * self.chunk_samples / self.sample_rate_in if self.causal else math.inf

    def check_length(self, samples: int, source: str) -> None:
        """Raise InputError where `samples` of `source` are more than the codec takes at once."""
        if samples > self.longest_seconds * self.sample_rate_in:
            raise InputError(
                f"{source}: {samples / self.sample_rate_in:.0f} s of audio; codec {self.name} does not stream and "
                f"takes at most {self.longest_seconds:g} s at once. Cut the recording at pauses first"
            )

    def check_causal(self) -> None:
        """Raise InputError where the codec does not stream."""
        if not self.causal:
            raise InputError(
                f"codec {self.name} does not stream: each of its tokens needs the whole utterance. Encode and decode "
                "whole files, or use a causal codec, such as lucadellalib/focalcodec_50hz_4k_causal"
            )
