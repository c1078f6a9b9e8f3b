"""Many live streams over one codec: rows of one preallocated state that streams join, step and leave.

The cost of a step grows with the number of streams that step, not with the size of the pool: their rows are gathered,
stepped as one batch and written back. Streams in neighbouring rows are read in place. (Stepping every row and masking
the idle ones makes a single stream cost as much as a full pool; benchmarks/pool.py measures both.)

The pool works with any state that is a tree of tuples with batch-first leaves, tensors or NumPy arrays.

Legend: N pool size, S samples, T tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenizer.chunks import StreamingCodec
from tokenizer.errors import InputError
from tokenizer.inputs import check_chunk, check_count, check_tokens
from tokenizer.model import CodecModel
from tokenizer.network.compiled_steps import CompiledSteps
from tokenizer.network.state_tree import changed, leaves_of, rebuilt


class StreamsRefused(InputError):
    """Input of some streams of a step was refused, and no stream was stepped.

    slots: those streams. Leave them out and step again; the other streams have not advanced.
    """

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__("; ".join(f"stream {slot}: {reason}" for slot, reason in reasons.items()))
        self.slots = tuple(reasons)


class StreamPool:
    """Up to `size` independent live streams, each at its own position.

        pool = StreamPool(codec, size=32)
        slot = pool.join()
        tokens = pool.encode({slot: chunk})[slot]   # float [n * chunk_samples] -> int64 [n * tokens_per_chunk]
        audio = pool.decode({slot: tokens})[slot]
        pool.leave(slot)

    Encoding and decoding advance separately. A step names the streams that have input; the others keep their state.
    Memory for `size` states is allocated at once. Not thread-safe.

    Args:
        codec: with any engine.
        size: streams, at most.
        compiled: step all rows of the pool at once by compiled code (a PyTorch `Codec` only): for a GPU, where it
            becomes one CUDA graph. Compiling takes a minute or more. Weights and device must then stay as they are.

    Raises:
        InputError: when `size` is not a whole number of at least 1, or `compiled` is set for another engine.
    """

    def __init__(self, codec: StreamingCodec, size: int, compiled: bool = False) -> None:
        self.size = size = check_count(size, "StreamPool: size", "stream")
        self._codec = codec
        self._state = codec.init_state(size)
        self._leaves = list(leaves_of(self._state))
        self._active: set[int] = set()
        # A step changes only the leaves of its own direction. Finding out once which ones saves copying the others.
        fresh = codec.init_state(1)
        tokens, encoded = codec.encode_step(torch.zeros(1, codec.chunk_samples), fresh)
        _, decoded = codec.decode_step(tokens, fresh)
        self._fresh = list(leaves_of(fresh))
        self._encoding = changed(fresh, encoded)
        self._decoding = changed(fresh, decoded)
        self._compiled = self._compile() if compiled else None

    @property
    def active(self) -> tuple[int, ...]:
        """Slots of the streams that are joined, ascending."""
        return tuple(sorted(self._active))

    def join(self, state: Any = None) -> int:
        """Begin a stream. Returns its slot, the lowest free one from 0 to size - 1.

        Args:
            state: of one stream of the same codec, to continue from; it is copied. None: a new stream.

        Raises:
            InputError: when the pool is full.
        """
        slot = next((slot for slot in range(self.size) if slot not in self._active), None)
        if slot is None:
            raise InputError(
                f"StreamPool: all {self.size} streams are taken; let one leave first, or make a larger pool"
            )
        leaves = self._fresh if state is None else leaves_of(state)
        for rows, leaf in zip(self._leaves, leaves, strict=True):
            rows[slot] = leaf[0]
        self._active.add(slot)
        return slot

    def leave(self, slot: int) -> None:
        """End a stream and free its slot.

        Raises:
            InputError: when no stream is joined there.
        """
        if slot not in self._active:
            raise InputError(f"StreamPool: {self._absent(slot)}")
        self._active.remove(slot)

    def encode(self, chunks: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The next audio of some streams to tokens.

        Args:
            chunks: by slot, float [n * chunk_samples] in [-1, 1], a tensor or NumPy; n may differ between streams.

        Returns:
            By slot, int64 [n * tokens_per_chunk].

        Raises:
            StreamsRefused: when a slot is not joined, or its samples are not whole chunks of finite floats. The
                error names every such slot, and no stream has advanced.
        """
        chunks = {slot: torch.as_tensor(chunk) for slot, chunk in chunks.items()}
        self._check(chunks, self._why_not_encode)
        if self._compiled:
            return self._compiled.encode(chunks)
        return self._step(self._codec.encode_step, self._encoding, chunks)

    def decode(self, tokens: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The next tokens of some streams to audio.

        Args:
            tokens: by slot, int64 [n * tokens_per_chunk], a tensor or NumPy; n may differ between streams, and a
                stream's last step may end in -1 (silence).

        Returns:
            By slot, float [n * tokens_per_chunk * samples_per_token].

        Raises:
            StreamsRefused: when a slot is not joined, or its tokens are not whole chunks or not of this codebook.
                The error names every such slot, and no stream has advanced.
        """
        tokens = {slot: torch.as_tensor(codes) for slot, codes in tokens.items()}
        self._check(tokens, self._why_not_decode)
        if self._compiled:
            return self._compiled.decode(tokens)
        return self._step(self._codec.decode_step, self._decoding, tokens)

    def _compile(self) -> CompiledSteps:
        if not isinstance(self._codec, CodecModel):
            raise InputError(
                f"StreamPool: compiled steps are PyTorch's, and this is a {type(self._codec).__name__}; load the codec "
                'with engine="torch", or leave out compiled'
            )
        return CompiledSteps(self._codec, self._state, self._encoding, self._decoding)

    def _step(
        self, step: Callable[[Tensor, Any], tuple[Tensor, Any]], touched: frozenset[int], inputs: Mapping[int, Tensor]
    ) -> dict[int, Tensor]:
        by_length: dict[int, list[int]] = defaultdict(list)
        for slot in sorted(inputs):
            by_length[len(inputs[slot])].append(slot)
        outputs: dict[int, Tensor] = {}
        states = []
        for slots in by_length.values():
            index = _Rows.of(slots)
            # Leaves that the step does not touch only need the same number of rows.
            rows = (index.read(leaf) if i in touched else leaf[: len(slots)] for i, leaf in enumerate(self._leaves))
            output, state = step(torch.stack([inputs[slot] for slot in slots]), rebuilt(self._state, rows))
            outputs.update(zip(slots, output, strict=True))
            states.append((index, state))
        for index, state in states:  # after every group has succeeded
            for i, leaf in enumerate(leaves_of(state)):
                if i in touched:
                    index.write(self._leaves[i], leaf)
        return outputs

    def _check(self, inputs: Mapping[int, Tensor], why_not: Callable[[Tensor], str | None]) -> None:
        reasons = {
            slot: reason
            for slot, value in inputs.items()
            if (reason := why_not(value) if slot in self._active else self._absent(slot))
        }
        if reasons:
            raise StreamsRefused(reasons)

    def _absent(self, slot: int) -> str:
        return f"slot {slot} is not joined; joined are {list(self.active)}, and join() gives another"

    def _why_not_encode(self, chunk: Tensor) -> str | None:
        size = self._codec.chunk_samples
        if chunk.ndim != 1 or len(chunk) == 0 or len(chunk) % size:
            return (
                f"the chunk has shape {tuple(chunk.shape)}; expected [n * {size}] samples. Buffer until a chunk is "
                "whole, and pad the last one with zeros"
            )
        return _refusal(check_chunk, chunk[None], size, 1)

    def _why_not_decode(self, tokens: Tensor) -> str | None:
        size = self._codec.tokens_per_chunk
        if tokens.ndim != 1 or len(tokens) == 0 or len(tokens) % size:
            return (
                f"the tokens have shape {tuple(tokens.shape)}; expected [n * {size}]. Buffer until a chunk is whole, "
                "and fill the last one with -1"
            )
        return _refusal(check_tokens, tokens[None], self._codec.codebook_size)


def _refusal(check: Callable[..., Any], *given: Any) -> str | None:
    """The message of a failed check; None where it passes."""
    try:
        check(*given)
    except InputError as error:
        return str(error)
    return None


class _Rows(NamedTuple):
    """Rows of batch-first leaves, in ascending order; contiguous rows are read without a copy."""

    slots: list[int]
    is_range: bool

    @classmethod
    def of(cls, slots: list[int]) -> _Rows:
        return cls(slots, slots[-1] - slots[0] + 1 == len(slots))

    def read(self, leaf: Any) -> Any:
        if self.is_range:
            return leaf[self.slots[0] : self.slots[-1] + 1]
        if isinstance(leaf, Tensor):  # three times as fast as leaf[slots]
            return leaf.index_select(0, torch.tensor(self.slots, device=leaf.device))
        return leaf[self.slots]

    def write(self, leaf: Any, rows: Any) -> None:
        if self.is_range:
            leaf[self.slots[0] : self.slots[-1] + 1] = rows
        elif isinstance(leaf, Tensor):
            leaf.index_copy_(0, torch.tensor(self.slots, device=leaf.device), rows)
        else:
            leaf[self.slots] = rows
