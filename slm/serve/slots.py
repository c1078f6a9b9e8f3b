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
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slm.generation.generate import Sampling, draw
from slm.model.decoding import Cache, DecodingWeights, decode_one_token, make_cache, prefill
from slm.model.transformer import LanguageModel
from slm.vocabulary import BOS, EOS, NO_CODE, PAD, Vocabulary
from tokenizer import Codec
from tokenizer.stream_pool import StreamPool

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
        self.generator = torch.Generator().manual_seed(seed)
        self.recent = torch.full((sampling.repetition_window,), PAD)
        self.count = 0  # of codes drawn
        self.ended = False

    def record(self, drawn: int) -> None:
        """Record a drawn id."""
        if drawn == EOS:
            self.ended = True
            return
        self.count += 1
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

    codes: Tensor
    audio: Tensor


class SlotBatch:
    """N preallocated slots. Not thread-safe.

    Args:
        codec: with any engine.
        model: in evaluation mode.
        vocabulary: the model's.
        size: N.

    Raises:
        InputError: the codec is not the model's or does not stream, or the size is below 1.
    """

    def __init__(self, codec: Any, model: LanguageModel, vocabulary: Vocabulary, size: int) -> None:
        vocabulary.check(f"codec '{codec.name}'", codec.fingerprint, codec.codebook_size)
        self.codec, self.vocabulary, self.size = codec, vocabulary, size
        self._weights = DecodingWeights(model)
        self._fills = isinstance(codec, Codec)
        self._pool = StreamPool(codec, 2 * size - 1 if self._fills else size)
        while len(self._pool.active) < self._pool.size:
            self._pool.join()
        self._cache = make_cache(model, size, longest_write=PIECE_CHUNKS * codec.tokens_per_chunk)
        self._device = model.embed_tokens.weight.device
        self._logits = torch.zeros(size, vocabulary.first_piece)  # without pieces of text

    def begin(self, slot: int) -> Any:
        """Clear a slot for a new stream. Returns its codec state, for `process_prompt`."""
        self._cache.position[slot] = 0
        self._prefill(slot, torch.tensor([BOS]))
        return self.codec.init_state(1)

    def process_prompt(self, slot: int, samples: Tensor, state: Any) -> tuple[Piece, Any]:
        """Process a piece of the prompt, float [n * chunk_samples]. Returns codes, audio and the next state."""
        codes, state = self.codec.encode_step(samples[None], state)
        audio, state = self.codec.decode_step(codes, state)
        self._prefill(slot, self.vocabulary.ids(codes[0].cpu()))
        return Piece(codes[0].cpu(), audio[0].float().cpu()), state

    def end_prompt(self, slot: int, state: Any) -> None:
        """The prompt has ended: move the decoder's state into the batch."""
        self._pool.leave(slot)
        assert self._pool.join(state) == slot, "every other row is occupied"

    def step(self, samplers: Mapping[int, Sampler]) -> dict[int, Piece]:
        """The next chunk of some streams: `tokens_per_chunk` codes, or fewer if the stream ends."""
        size = self.codec.tokens_per_chunk
        codes = torch.full((self.size, size), NO_CODE)
        for i in range(size):
            drawn, live = torch.full((self.size,), PAD), torch.zeros(self.size, dtype=torch.bool)
            for slot, token in self._drawn(samplers).items():
                samplers[slot].record(token)
                if not samplers[slot].ended:
                    drawn[slot], live[slot] = token, True
            if not live.any():
                break
            codes[live, i] = self.vocabulary.codes(drawn[live])
            logits = decode_one_token(self._weights, drawn.to(self._device), self._cache, live.to(self._device)).cpu()
            self._logits = torch.where(live[:, None], logits[:, : self._logits.shape[1]], self._logits)
        pieces = self._decoded({slot: codes[slot] for slot in samplers if codes[slot, 0] != NO_CODE})
        silence = Piece(codes[0, :0], torch.zeros(0))
        return {slot: pieces.get(slot, silence) for slot in samplers}

    def _prefill(self, slot: int, ids: Tensor) -> None:
        row = Cache(*(part[slot : slot + 1] for part in self._cache))
        logits = prefill(self._weights, ids[None].to(self._device), torch.tensor([len(ids)], device=self._device), row)
        self._logits[slot] = logits[0, : self._logits.shape[1]].cpu()

    def _drawn(self, samplers: Mapping[int, Sampler]) -> dict[int, int]:
        """The next id of each stream that has not ended. Streams with equal settings are drawn together."""
        alike: dict[tuple[Sampling, bool], list[int]] = defaultdict(list)
        for slot, sampler in samplers.items():
            if not sampler.ended and not sampler.is_full:
                alike[sampler.sampling, sampler.may_end].append(slot)
        drawn: dict[int, int] = {}
        for (sampling, may_end), slots in alike.items():
            recent = torch.stack([samplers[slot].recent for slot in slots])
            generators = [samplers[slot].generator for slot in slots]
            tokens = draw(self._logits[slots], sampling, recent, generators, may_end)
            drawn.update(zip(slots, tokens.tolist(), strict=True))
        return drawn

    def _decoded(self, codes: dict[int, Tensor]) -> dict[int, Piece]:
        silent = torch.full((self.codec.tokens_per_chunk,), NO_CODE)
        fillers: Iterable[int] = range(self.size, 2 * self.size - len(codes)) if self._fills and codes else ()
        audio = self._pool.decode({**codes, **dict.fromkeys(fillers, silent)}) if codes else {}
        pieces = {}
        for slot, tokens in codes.items():
            kept = tokens[tokens != NO_CODE]
            pieces[slot] = Piece(kept, audio[slot][: len(kept) * self.codec.samples_per_token].float().cpu())
        return pieces
