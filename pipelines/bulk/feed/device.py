"""The device that a codec runs on: batches go in one after another, tokens come out later.

On a GPU a call only queues work (a codec that does not stream waits for its lengths). The samples of the next batch are
copied from pinned memory while the batch before is computed, and nobody waits for tokens before the next batch is
queued: the checks of `encode`, which look at samples on the GPU, are left out, because readers have made them. On a CPU
a call does the work.

CUDA's current device and gradient mode are those of a thread, so every entry sets them.

Legend: B rows, S samples, T tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from tokenizer.errors import InputError
from tokenizer.network.state_tree import leaves_of, rebuilt

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tokenizer import Codec

PRECISIONS = ("fp32", "tf32", "bf16")


class Tokens(Protocol):
    """Tokens that the device may still be computing."""

    def result(self) -> np.ndarray:
        """Integers [B, T]; waits for the device. From then on the samples may be overwritten."""
        ...


class Device:
    """A codec where it runs.

    Args:
        codec: with its weights on `device`.
        device: such as "cpu" or "cuda:1"; as `torch.device` it is `place`.
    """

    def __init__(self, codec: Codec, device: str) -> None:
        import torch

        self.codec = codec
        self.place = torch.device(device)
        self._copies: Any = torch.cuda.Stream(self.place) if self.place.type == "cuda" else None

    @property
    def is_gpu(self) -> bool:
        """Whether work is only queued, and copies go beside it from pinned memory."""
        return self._copies is not None

    def encode(self, wave: np.ndarray, lengths: np.ndarray) -> Tokens:
        """Whole utterances, float32 [B, S] of `lengths` samples, int64 [B]."""
        import torch

        if self._copies is None:
            return _Here(self.codec.encode(self._there(wave), torch.from_numpy(lengths)).cpu().numpy())
        with self._here():
            return self._coming(self.codec.encode_whole_checked(self._moved(wave), lengths.tolist()))

    def encode_step(self, wave: np.ndarray, state: Any) -> tuple[Tokens, Any]:
        """Whole chunks of streams, float32 [B, S], after the ones that led to `state`."""
        if self._copies is None:
            tokens, state = self.codec.encode_step(self._there(wave), state)
            return _Here(tokens.cpu().numpy()), state
        with self._here():
            tokens, state = self.codec.encode_checked(self._moved(wave), state)
            return self._coming(tokens), state

    def renewed(self, state: Any, rows: int, fresh: Sequence[int]) -> Any:
        """The first `rows` rows of a state, of which the ones in `fresh` begin anew; a new state where it has not so
        many rows, because their steps were needless."""
        with self._here():
            leaves = [] if state is None else list(leaves_of(state))
            if not leaves or len(leaves[0]) < rows or len(fresh) == rows:
                return self.codec.init_state(rows)
            leaves = [leaf[:rows] for leaf in leaves]
            if fresh:
                from tokenizer.model import queued

                begun = leaves_of(self.codec.init_state(len(fresh)))
                index = queued(list(fresh), leaves[0].device)
                leaves = [leaf.index_copy(0, index, new) for leaf, new in zip(leaves, begun, strict=True)]
            return rebuilt(state, iter(leaves))

    @contextlib.contextmanager
    def _here(self) -> Iterator[None]:
        import torch

        with contextlib.nullcontext() if self._copies is None else torch.cuda.device(self.place), torch.no_grad():
            yield

    def _there(self, wave: np.ndarray) -> Tensor:
        import torch

        return torch.from_numpy(wave).to(self.place)

    def _moved(self, wave: np.ndarray) -> Tensor:
        """Samples on the GPU, copied beside what is being computed where the memory is pinned, as soon as the work that
        is queued from now on needs them."""
        import torch

        with torch.cuda.stream(self._copies):
            moved = torch.from_numpy(wave).to(self.place, non_blocking=True)
        computing = torch.cuda.current_stream()
        computing.wait_stream(self._copies)
        moved.record_stream(computing)  # its memory belongs to the other stream, which must not use it again too soon
        return moved

    def _coming(self, tokens: Tensor) -> Tokens:
        import torch

        here = torch.empty(tokens.shape, dtype=torch.int32, pin_memory=True)
        here.copy_(tokens.int(), non_blocking=True)
        done = torch.cuda.Event(blocking=True)  # who waits sleeps, and leaves the core to a decoder
        done.record()
        return _Coming(here, done, self.place)


class _Here(NamedTuple):
    tokens: np.ndarray

    def result(self) -> np.ndarray:
        return self.tokens


class _Coming(NamedTuple):
    tokens: Tensor
    done: Any
    device: torch.device

    def result(self) -> np.ndarray:
        import torch

        with torch.cuda.device(self.device):  # a thread's own is the first GPU, which would give this process memory
            self.done.synchronize()
        return self.tokens.numpy()


def check_precision(precision: str, device: str) -> None:
    """Raise InputError unless a bulk run can encode in that precision there."""
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision}, expected one of {', '.join(PRECISIONS)}")
    if precision != "fp32" and device == "cpu":
        raise InputError(f"precision {precision} is for a GPU; on the CPU leave out --precision")


@contextlib.contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Multiply float32 matrices on a GPU as float32, or with "tf32" in 10 bits of mantissa, and convolve by algorithms
    that always give the same sums; then restore the settings. PyTorch's own default is TF32 in convolutions alone, by
    any algorithm."""
    import torch

    matrices, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matrices.allow_tf32, convolutions.allow_tf32, convolutions.deterministic, convolutions.benchmark
    matrices.allow_tf32 = convolutions.allow_tf32 = precision == "tf32"
    convolutions.deterministic, convolutions.benchmark = True, False
    try:
        yield
    finally:
        matrices.allow_tf32, convolutions.allow_tf32, convolutions.deterministic, convolutions.benchmark = before
