"""Compiled steps of a pool: on a GPU each step is one CUDA graph, without launches from the CPU.

A graph replays the same kernels on the same addresses. So a step always covers all rows of the pool and one chunk, the
state is updated in place, and a mask selects the streams that advance. Each step costs the arithmetic of a full pool,
where `StreamPool` otherwise gathers rows.

The state is mutated. The states of `Codec.encode_step` are values instead: a stream may continue from one twice. As a
graph's next replay overwrites its outputs, values would need a copy of every leaf out of the graph and back.

Legend: N pool size, S samples of a chunk, T tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from tokenizer.inputs import NO_TOKEN
from tokenizer.network.state_tree import leaves_of


class Compilable(Protocol):
    """What of a `tokenizer.model.CodecModel` is compiled, and the shapes of a step."""

    @property
    def chunk_samples(self) -> int: ...
    @property
    def tokens_per_chunk(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    def encode_checked(self, chunk: Tensor, state: Any) -> tuple[Tensor, Any]: ...
    def decode_checked(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]: ...


Step = Callable[[Tensor, Tensor], Tensor]

WARM_UP = 3  # runs until a CUDA graph is replayed: compile and run, record, replay


class CompiledSteps:
    """`encode` and `decode` of rows of a pool's state, which they change in place.

    Making it compiles both, which takes a minute or more.

    Args:
        codec: its weights and device must stay as they are.
        state: of N streams; its leaves are updated in place.
        encoding, decoding: which leaves a step of either kind changes, by their order.
    """

    def __init__(self, codec: Compilable, state: Any, encoding: frozenset[int], decoding: frozenset[int]) -> None:
        self._codec, self._streams = codec, len(next(leaves_of(state)))
        for leaf in leaves_of(state):
            # So that the graph writes to it in place, without copies.
            torch._dynamo.mark_static_address(leaf)
        self._encode = _in_place(codec.encode_checked, state, encoding)
        self._decode = _in_place(codec.decode_checked, state, decoding)
        for _ in range(WARM_UP):  # no stream advances
            self._run(self._encode, self._silence("cpu"), {})
            self._run(self._decode, self._no_tokens("cpu"), {})

    def encode(self, chunks: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Checked samples [n * S] by row -> tokens int64 [n * T] by row; n may differ between rows."""
        return self._chunk_by_chunk(self._encode, self._silence, chunks)

    def decode(self, tokens: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Checked tokens [n * T] by row -> samples by row."""
        return self._chunk_by_chunk(self._decode, self._no_tokens, tokens)

    def _silence(self, device: torch.device | str) -> Tensor:
        return torch.zeros(self._streams, self._codec.chunk_samples, dtype=self._codec.dtype, device=device)

    def _no_tokens(self, device: torch.device | str) -> Tensor:
        return torch.full((self._streams, self._codec.tokens_per_chunk), NO_TOKEN, device=device)

    def _chunk_by_chunk(
        self, step: Step, empty: Callable[[torch.device], Tensor], inputs: Mapping[int, Tensor]
    ) -> dict[int, Tensor]:
        outputs: dict[int, list[Tensor]] = {row: [] for row in inputs}
        at = 0
        while going := [row for row, given in inputs.items() if at < len(given)]:
            x = empty(inputs[going[0]].device)  # on the input's device, so that there is one transfer
            pieces = {row: inputs[row][at : at + x.shape[1]] for row in going}
            for row, output in self._run(step, x, pieces).items():
                outputs[row].append(output)
            at += x.shape[1]
        return {row: torch.cat(pieces) for row, pieces in outputs.items()}

    def _run(self, step: Step, x: Tensor, pieces: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """One step of the pool with `pieces` in rows of x [N, ...]; only those streams advance."""
        moves = torch.zeros(self._streams, dtype=torch.bool)
        for row, piece in pieces.items():
            x[row], moves[row] = piece, True
        output = step(x.to(self._codec.device), moves.to(self._codec.device))
        output = output.clone()  # a graph's next replay overwrites what it returned
        return {row: output[row] for row in pieces}


def _in_place(step: Callable[[Tensor, Any], tuple[Tensor, Any]], state: Any, touched: frozenset[int]) -> Step:
    """`step`, compiled, on all rows of `state`; only where `moves`, bool [N], does it change the state."""
    leaves = list(leaves_of(state))

    def advance(x: Tensor, moves: Tensor) -> Tensor:
        output, following = step(x, state)
        for index, leaf in enumerate(leaves_of(following)):
            if index in touched:
                row = moves.view(-1, *[1] * (leaf.ndim - 1))
                leaves[index].copy_(torch.where(row, leaf, leaves[index]))
        return output

    compiled = torch.compile(advance, mode="reduce-overhead", fullgraph=True, dynamic=False)
    return torch.no_grad()(compiled)
