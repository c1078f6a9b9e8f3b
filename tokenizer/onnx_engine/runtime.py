"""Running one exported step on ONNX Runtime, with states that are plain values although their histories share memory.

Legend: B batch, W frames that a history looks back on.

A state is a tuple of NumPy arrays, batch-first and of fixed shapes. A history's array is a window of W frames onto a
buffer with room for more. A step writes behind the window, where no earlier state looks, and returns the window moved
on; so earlier states stay as they were, and nothing is copied. Only when the room is used up, or the state is not the
last one that the buffers have given (a stream that branches, rows picked from several states), are windows copied.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenizer.errors import InputError, first_line
from tokenizer.onnx_engine.manifest import StateSpec

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

ROOM = 32  # chunks that buffers have room for; a copy of every window a ROOM-th of the steps is no cost


class Histories:
    """The buffers of a graph's histories, begun with windows [B, ..., W, ...] of them."""

    def __init__(self, specs: list[StateSpec], windows: list[np.ndarray], chunks: int) -> None:
        self.chunks = chunks
        self.filled = 0  # chunks written
        self.buffers = []
        for spec, window in zip(specs, windows, strict=True):
            shape = list(window.shape)
            shape[spec.axis] += spec.rate * chunks
            buffer = zeros(shape)
            buffer[spec.slots(0, spec.past)] = window
            self.buffers.append(buffer)


class GraphState(tuple[np.ndarray, ...]):
    """position int64 [B], then the arrays of the graph's states.

    histories, slot: the buffers that its windows lie in, and the chunks that were written to them before.
    """

    histories: Histories | None
    slot: int

    def __new__(cls, leaves: Iterable[np.ndarray], histories: Histories | None = None, slot: int = 0) -> GraphState:
        state = super().__new__(cls, leaves)
        state.histories, state.slot = histories, slot
        return state


class StepRunner:
    """One step of a codec.

    Args:
        path: the `.onnx` file; its weights lie beside it.
        specs: the graph's states.
        data, result: names of its data input and output.
        threads: CPU threads; 0: as many as there are cores.

    Raises:
        InputError: when ONNX Runtime cannot load the file, or is not installed.
    """

    def __init__(self, path: Path, specs: list[StateSpec], data: str, result: str, threads: int) -> None:
        self._session = open_session(path, threads)
        self._specs, self._data, self._result = specs, data, result
        self._outputs = [result, *(f"next.{spec.name}" for spec in specs)]
        self._histories = [spec for spec in specs if spec.history]

    def init_state(self, batch: int) -> GraphState:
        """The state of `batch` streams that have not begun."""
        leaves = [zeros((batch, *spec.window)) for spec in self._specs]
        return GraphState((np.zeros(batch, dtype=np.int64), *leaves))

    def step(self, x: np.ndarray, chunks: int, state: tuple[np.ndarray, ...]) -> tuple[np.ndarray, GraphState]:
        """Run the graph on `x` [B, ...], which is `chunks` chunks long: its result and the next state."""
        inputs = {self._data: np.ascontiguousarray(x), "position": np.ascontiguousarray(state[0])}
        position = state[0] + chunks
        if self._histories:
            return self._step_in_place(inputs, chunks, state, position)
        inputs.update((spec.name, leaf) for spec, leaf in zip(self._specs, state[1:], strict=True))
        result, *leaves = self._session.run(self._outputs, inputs)
        return result, GraphState((position, *leaves))

    def _step_in_place(
        self, inputs: dict[str, np.ndarray], chunks: int, state: tuple[np.ndarray, ...], position: np.ndarray
    ) -> tuple[np.ndarray, GraphState]:
        """As `step`, with the input and the output of each history bound to its buffer."""
        histories, slot = self._room(state, chunks)
        inputs["slot"] = np.array([slot])
        buffers, binding = iter(histories.buffers), self._session.io_binding()
        leaves = [position]
        for spec, leaf in zip(self._specs, state[1:], strict=True):
            if spec.history:
                inputs[spec.name] = output = next(buffers)
                leaves.append(output[spec.slots((slot + chunks) * spec.rate, spec.past)])
            else:
                inputs[spec.name] = np.ascontiguousarray(leaf)
                output = np.empty_like(inputs[spec.name])
                leaves.append(output)
            bind_array(binding.bind_output, f"next.{spec.name}", output)
        for name, array in inputs.items():
            bind_array(binding.bind_input, name, array)
        binding.bind_output(self._result)
        self._session.run_with_iobinding(binding)
        histories.filled = slot + chunks
        return binding.get_outputs()[-1].numpy(), GraphState(leaves, histories, slot + chunks)

    def _room(self, state: tuple[np.ndarray, ...], chunks: int) -> tuple[Histories, int]:
        """Buffers with room for `chunks` behind the windows of `state`, and the slot to go on at."""
        if isinstance(state, GraphState) and state.histories is not None:
            unwritten = state.histories.filled == state.slot  # no other step has gone on from here
            if unwritten and state.slot + chunks <= state.histories.chunks:
                return state.histories, state.slot
        windows = [leaf for spec, leaf in zip(self._specs, state[1:], strict=True) if spec.history]
        return Histories(self._histories, windows, max(ROOM, chunks)), 0


def open_session(path: Path, threads: int) -> InferenceSession:
    """A graph, ready to run on the CPU.

    Args:
        path: the `.onnx` file; its weights lie beside it.
        threads: CPU threads; 0: as many as there are cores.

    Raises:
        InputError: when ONNX Runtime cannot load the file, or is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise missing("onnxruntime") from None
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = False  # its arena keeps twice what a step needs, and is no faster here
    # Else the threads of one graph still spin, waiting for work, while the next graph runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        reason = first_line(error)
        raise InputError(
            f"{path}: ONNX Runtime cannot load it ({reason}); delete its folder and export the codec again"
        ) from None


def missing(package: str) -> InputError:
    """The error for a package that the optional extra brings."""
    return InputError(f'engine "onnx": the package {package} is not installed; pip install "focalstream[onnx]"')


def zeros(shape: Sequence[int]) -> np.ndarray:
    """float32 zeros in pages of their own, which take memory once they are written and give it back when dropped.

    What the allocator hands out stays with the process: the buffers of one generation would leave holes that the next
    one does not fit.
    """
    pages = mmap.mmap(-1, 4 * math.prod(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, dtype=np.float32).reshape(shape)


def bind_array(bind: Callable[..., None], name: str, array: np.ndarray) -> None:
    """Bind an input or output of a session to an array's memory, which must be contiguous and stay."""
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
