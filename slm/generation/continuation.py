"""Speech continuation: a prompt's audio to codes, these to new codes, and those to audio, chunk by chunk.

    prompt audio --encode--> prompt codes --prefill--> LM --a code a step-> codes of a chunk --decode_step--> audio
                                 |                                                                  ^
                                 +--decode_step--> the prompt resynthesised, and its state ---------+

The decoder has processed the prompt before the first new codes, so the transition has no seam. The prompt is cut to
whole chunks: a partial chunk would be padded with zeros, and the model would see an abrupt silence.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from slm.generation.endpoint import Endpoint
from slm.generation.engines import codec_on_arrays, model_on_arrays
from slm.generation.extend import extend, framed
from slm.generation.level import LevelMatch
from slm.generation.sampling import Sampling
from slm.generation.silence import with_silent_codes
from slm.vocabulary import Vocabulary
from tokenizer.errors import InputError
from tokenizer.live import LiveStream

TIMED_CHUNKS = 4096  # chunks whose times are kept, so that memory does not grow in an endless session
PROMPT_CHUNKS = 128  # decoded at once; this bounds the memory for a long prompt


class Chunk(NamedTuple):
    """New speech: `codec.tokens_per_chunk` codes, or fewer in the last chunk, and their audio."""

    codes: np.ndarray  # int64 [n]
    audio: np.ndarray  # float32 [n * codec.samples_per_token] at codec.sample_rate_out


@dataclass(frozen=True)
class Timing:
    """Speed of a continuation, for warm models. Chunk times are those of the latest 4,096 chunks.

    The time to first audio starts at the end of the prompt and includes encoding the whole prompt. A live session
    encodes while the prompt is still being spoken.
    """

    prompt_seconds: float  # of audio
    new_seconds: float  # of audio
    encode_ms: float  # the prompt to codes
    prime_ms: float  # the prompt's codes through the decoder
    prefill_ms: float  # the prompt's codes through the language model, and the first draw
    first_audio_ms: float | None  # the three above plus the first chunk; None without new audio, as the fields below
    chunk_ms_p50: float | None
    chunk_ms_p95: float | None
    chunk_ms_p99: float | None
    real_time_factor: float | None  # computing time / duration of new audio, without the prompt; below 1 is real time


class Continuation:
    """One continuation of one prompt.

        continuation = Continuation(codec, model, vocabulary, prompt, Sampling(temperature=0.8), max_seconds=6)
        play(continuation.prompt_audio)
        for chunk in continuation.chunks():
            play(chunk.audio)

    Args:
        codec: the codec whose codes the model was trained on, of any engine.
        model: a `LanguageModel` in evaluation mode, an `ArrayLanguageModel`, or an `Endpoint`.
        vocabulary: the model's.
        prompt: float32 [S] at `codec.sample_rate_in`, mono; it is cut to whole chunks.
        sampling: how codes are drawn.
        seed: the same seed gives the same continuation.
        min_seconds: shortest new speech; the model may not end it earlier.
        max_seconds: longest new speech; None: until the model ends it. Both are rounded up to whole chunks.
        match_level: render everything as loud as the prompt was, within 6 dB; else as the codec does.

    Attributes:
        prompt_codes: int64 [T].
        prompt_audio: float32 [T * codec.samples_per_token] at `codec.sample_rate_out`: the prompt resynthesised.

    Raises:
        InputError: the codec is not the model's, or the prompt is shorter than a chunk.
    """

    def __init__(
        self,
        codec: Any,
        model: Any,
        vocabulary: Vocabulary,
        prompt: np.ndarray,
        sampling: Sampling,
        seed: int = 0,
        min_seconds: float = 0.0,
        max_seconds: float | None = None,
        match_level: bool = False,
    ) -> None:
        vocabulary.check(f"codec '{codec.name}'", codec.fingerprint, codec.codebook_size)
        whole = len(prompt) // codec.chunk_samples * codec.chunk_samples
        if whole == 0:
            raise InputError(
                f"the prompt has {len(prompt)} samples at {codec.sample_rate_in} Hz; expected at least one chunk of "
                f"{codec.chunk_samples} ({codec.latency_ms:g} ms), better a few seconds"
            )
        codec = codec_on_arrays(codec)
        self._codec, self._model, self._vocabulary = codec, model, vocabulary
        self._sampling, self._seed = with_silent_codes(sampling, codec), seed
        self._min_codes = codec.tokens_for(min_seconds)
        self._max_codes = None if max_seconds is None else codec.tokens_for(max_seconds)
        began = time.perf_counter()
        codes = codec.encode(prompt[None, :whole])
        encoded = time.perf_counter()
        self._stream: Any = LiveStream(codec)  # of arrays
        size = PROMPT_CHUNKS * codec.tokens_per_chunk
        pieces = [self._stream.decode(codes[0, begin : begin + size]) for begin in range(0, codes.shape[1], size)]
        self.prompt_codes = codes[0]
        self.prompt_audio = np.concatenate(pieces)
        self._level = LevelMatch()
        if match_level:
            self.prompt_audio = self._level.prompt(prompt[:whole], self.prompt_audio, whole / codec.sample_rate_in)
        self._encode_time, self._prime_time = encoded - began, time.perf_counter() - encoded
        self._prefill_time = 0.0
        self._chunk_times: deque[float] = deque(maxlen=TIMED_CHUNKS)
        self._first_chunk_time = 0.0
        self._new_time, self._new_codes = 0.0, 0

    def chunks(self) -> Iterator[Chunk]:
        """The new speech; close the iterator to cancel. Can be iterated once."""
        assert not self._new_codes, "the decoder's state has advanced: create another Continuation"
        stream = self._codes()
        began = time.perf_counter()
        codes = list(itertools.islice(stream, 1))
        self._prefill_time = self._new_time = time.perf_counter() - began
        while True:
            began = time.perf_counter()
            codes += itertools.islice(stream, self._codec.tokens_per_chunk - len(codes))
            if not codes:
                return
            chunk = self._decoded(np.concatenate(codes))
            self._clock(time.perf_counter() - began, len(codes))
            yield chunk
            codes = []

    def timing(self) -> Timing:
        """The times so far."""
        rate = self._codec.token_rate
        p50, p95, p99 = (
            float(np.percentile(self._chunk_times, p)) * 1000 if self._chunk_times else None for p in (50, 95, 99)
        )
        new_seconds = self._new_codes / rate
        before = self._encode_time + self._prime_time + self._prefill_time
        return Timing(
            prompt_seconds=len(self.prompt_codes) / rate,
            new_seconds=new_seconds,
            encode_ms=1000 * self._encode_time,
            prime_ms=1000 * self._prime_time,
            prefill_ms=1000 * self._prefill_time,
            first_audio_ms=1000 * (before + self._first_chunk_time) if new_seconds else None,
            chunk_ms_p50=p50,
            chunk_ms_p95=p95,
            chunk_ms_p99=p99,
            real_time_factor=self._new_time / new_seconds if new_seconds else None,
        )

    def _codes(self) -> Iterator[np.ndarray]:
        """The codes that follow the prompt, int64 [1] each."""
        sampling, least, most = self._sampling, self._min_codes, self._max_codes
        if isinstance(self._model, Endpoint):
            return self._model.codes(self.prompt_codes, self._vocabulary, sampling, self._seed, least, most)
        prompt, lengths = framed([self.prompt_codes], self._vocabulary)
        model, allowed = model_on_arrays(self._model), self._vocabulary.code_ids
        return extend(model, prompt, lengths, allowed, sampling, [self._seed], least, most)

    def _decoded(self, codes: np.ndarray) -> Chunk:
        return Chunk(codes, self._level.speech(self._stream.decode(codes)))

    def _clock(self, seconds: float, codes: int) -> None:
        if not self._new_codes:
            self._first_chunk_time = seconds
        self._chunk_times.append(seconds)
        self._new_time += seconds
        self._new_codes += codes


def warm_up(codec: Any, model: Any, vocabulary: Vocabulary) -> None:
    """Run a short continuation of noise, so that one-time costs of the first call do not count as latency."""
    noise = np.random.default_rng(0).normal(0, 0.01, 2 * codec.chunk_samples).astype(np.float32)
    list(Continuation(codec, model, vocabulary, noise, Sampling(), min_seconds=0.1, max_seconds=0.1).chunks())
