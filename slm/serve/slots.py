"""The model work of many live streams: N slots of the language model and N rows of the codec's decoder.

The output of a stream does not depend on the other streams. Float rounding depends on the shape of a batch but not on
the contents of its other rows, so shapes must not depend on the other streams:

- a prompt is encoded, decoded and prefilled alone, in pieces whose sizes follow from its length (`piece_chunks`);
- a step of the language model computes all N rows, and rows that are not due do not advance;
- the decoder steps N rows too, and missing rows are fillers. ONNX Runtime needs no fillers: its rows are the same
  at any batch size (tests/slm/serve/test_scheduler.py).

Legend: N slots, T tokens, S samples, W ids of a repetition window.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from slm.generation.engines import codec_on_arrays, model_on_arrays
from slm.generation.sampling import RandomStream, Sampling, draw, silences_after
from slm.generation.silence import silent_codes
from slm.serve.decoder_rows import decoder_rows
from slm.vocabulary import BOS, EOS, NO_CODE, PAD, Vocabulary

PIECE_CHUNKS = 4  # of a prompt at once: a piece must fit between two steps of the other streams


def piece_chunks(waiting: int, ended: bool) -> int:
    """How many of the waiting chunks of a prompt to process next; 0: wait for more.

    Four at a time, and after the end of the prompt the rest in powers of two, however the audio arrived.
    """
    if waiting >= PIECE_CHUNKS:
        return PIECE_CHUNKS
    return 1 << (waiting.bit_length() - 1) if ended and waiting else 0


class Sampler:
    """Draws the codes of one stream.

    Args:
        sampling: the filters.
        seed: 0 to 2^63 - 1.
        min_codes: codes before it may end.
        max_codes: codes at most; None: until the model ends it.
    """

    def __init__(self, sampling: Sampling, seed: int, min_codes: int, max_codes: int | None) -> None:
        self.sampling, self.min_codes, self.max_codes = sampling, min_codes, max_codes
        self.generator = RandomStream(seed)
        self.recent = np.full(sampling.repetition_window, PAD, dtype=np.int64)
        self.count = 0
        self.silences = np.zeros(1, dtype=np.int64)  # silent codes at its end
        self.ended = False

    def record(self, drawn: int) -> None:
        """Record a drawn id."""
        if drawn == EOS:
            self.ended = True
            return
        self.count += 1
        self.silences = silences_after(self.silences, np.array([drawn]), self.sampling)
        self.recent[self.count % len(self.recent)] = drawn

    @property
    def may_end(self) -> bool:
        return self.count >= self.min_codes

    @property
    def is_full(self) -> bool:
        """Whether it has `max_codes` codes."""
        return self.max_codes is not None and self.count >= self.max_codes


class Piece(NamedTuple):
    """Codes int64 [T], fewer than a whole chunk if the stream has ended, and their audio float32 [S]."""

    codes: np.ndarray
    audio: np.ndarray


class SlotBatch:
    """N preallocated slots. Not thread-safe.

    Args:
        codec: of any engine.
        model: of any engine, in evaluation mode.
        vocabulary: the model's.
        size: N.

    Raises:
        InputError: the codec is not the model's or does not stream, or the size is below 1.
    """

    def __init__(self, codec: Any, model: Any, vocabulary: Vocabulary, size: int) -> None:
        vocabulary.check(f"codec '{codec.name}'", codec.fingerprint, codec.codebook_size)
        self.codec, self.vocabulary, self.size = codec_on_arrays(codec), vocabulary, size
        self._model = model_on_arrays(model)
        self.context = self._model.context
        self._rows = decoder_rows(codec, size)
        self._cache = self._model.make_cache(size, longest_write=PIECE_CHUNKS * codec.tokens_per_chunk)
        self.silent_codes = silent_codes(self.codec)
        self._logits = np.zeros((size, vocabulary.first_piece))  # without pieces of text

    def begin(self, slot: int) -> Any:
        """Clear a slot for a new stream. Returns its codec state, for `process_prompt`."""
        self._cache.position[slot] = 0
        self._prefill(slot, np.array([BOS]))
        return self.codec.init_state(1)

    def process_prompt(self, slot: int, samples: np.ndarray, state: Any) -> tuple[Piece, Any]:
        """Process a piece of the prompt, float [n * chunk_samples]. Returns codes, audio and the next state."""
        codes, state = self.codec.encode_step(samples[None], state)
        audio, state = self.codec.decode_step(codes, state)
        self._prefill(slot, self.vocabulary.ids(codes[0]))
        return Piece(codes[0], audio[0]), state

    def end_prompt(self, slot: int, state: Any) -> None:
        """The prompt has ended: move the decoder's state into the batch."""
        self._rows.replace(slot, state)

    def step(self, samplers: Mapping[int, Sampler]) -> dict[int, Piece]:
        """The next chunk of some streams: `tokens_per_chunk` codes, or fewer if the stream ends."""
        size = self.codec.tokens_per_chunk
        codes = np.full((self.size, size), NO_CODE, dtype=np.int64)
        for step in range(size):
            drawn, live = np.full(self.size, PAD, dtype=np.int64), np.zeros(self.size, dtype=bool)
            for slot, token in self._drawn(samplers).items():
                samplers[slot].record(token)
                if not samplers[slot].ended:
                    drawn[slot], live[slot] = token, True
            if not live.any():
                break
            codes[live, step] = self.vocabulary.codes(drawn[live])
            logits = self._model.decode_one_token(drawn, self._cache, live)
            self._logits[live] = logits[live, : self._logits.shape[1]]
        pieces = self._decoded({slot: codes[slot] for slot in samplers if codes[slot, 0] != NO_CODE})
        silence = Piece(codes[0, :0], np.zeros(0, dtype=np.float32))
        return {slot: pieces.get(slot, silence) for slot in samplers}

    def _prefill(self, slot: int, ids: np.ndarray) -> None:
        logits = self._model.prefill(ids[None], np.array([len(ids)]), self._cache.row(slot))
        self._logits[slot] = logits[0, : self._logits.shape[1]]

    def _drawn(self, samplers: Mapping[int, Sampler]) -> dict[int, int]:
        """The next id of each stream that has not ended. Streams with equal settings are drawn together."""
        alike: dict[tuple[Sampling, bool], list[int]] = defaultdict(list)
        for slot, sampler in samplers.items():
            if not sampler.ended and not sampler.is_full:
                alike[sampler.sampling, sampler.may_end].append(slot)
        drawn: dict[int, int] = {}
        for (sampling, may_end), slots in alike.items():
            recent = np.stack([samplers[slot].recent for slot in slots])
            generators = [samplers[slot].generator for slot in slots]
            silences = np.concatenate([samplers[slot].silences for slot in slots])
            tokens = draw(self._logits[slots], sampling, recent, generators, may_end, silences)
            drawn.update(zip(slots, tokens.tolist(), strict=True))
        return drawn

    def _decoded(self, codes: dict[int, np.ndarray]) -> dict[int, Piece]:
        audio = self._rows.decode(codes) if codes else {}
        pieces = {}
        for slot, tokens in codes.items():
            kept = tokens[tokens != NO_CODE]
            pieces[slot] = Piece(kept, audio[slot][: len(kept) * self.codec.samples_per_token])
        return pieces
