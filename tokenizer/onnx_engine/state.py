"""The past of a graph's layers, and where a step stands in it.

Legend: B batch, T frames of a step, D channels, W frames of past, P slots of a history.

A layer's past is a state, an input and an output of the graph:

- a short one is joined to the new frames, and its output is the last W of them all;
- a long one is a history, a buffer [B, heads or 1, P, D] with more slots than W. A step writes its frames behind those
  of the steps before, a vector a slot.
  When input and output are bound to one memory, that write is all that happens to it: nothing is shifted or copied.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from onnx import TensorProto

from tokenizer.onnx_engine.builder import GraphBuilder
from tokenizer.onnx_engine.kernels import Kernel
from tokenizer.onnx_engine.manifest import StateSpec

LONG = 100  # frames of past from which a state is a history
END = 2**62  # a slice's end beyond any length


class StepGraph:
    """What the layers of one graph share: the builder, the states, and where the step stands.

    Inputs of a graph beside its data and its states: `position` int64 [B], chunks that each stream has had before; and
    where there is a history, `slot` int64 [1], chunks that were written to the histories before.
    """

    def __init__(self, kernel: Kernel | None) -> None:
        self.builder = GraphBuilder(kernel)
        self.states: list[StateSpec] = []
        self.op = self.builder.op
        self.position = self.builder.input("position", TensorProto.INT64, ["batch"])
        started = self.op("Greater", self.position, self.builder.ints(0))
        self.started = self.by_stream(started)
        begins = self.op("Equal", self.op("ReduceMin", self.position), self.builder.ints(0))
        self.begins = self.op("Cast", begins, to=TensorProto.INT64)  # [1], 1 when a stream begins with this step
        self.first = cache(self._first)
        self._written: dict[tuple[int, str], str] = {}

    def state(self, name: str, shape: tuple[int, ...], axis: int, past: int, rate: int) -> StateSpec:
        """Declare a state whose time axis in `shape` is yet to be set."""
        history = rate > 0 and past >= LONG and axis == 2
        if history and not any(spec.history for spec in self.states):
            self.builder.input("slot", TensorProto.INT64, [1])
        sized = list(shape)
        sized[axis - 1] = past + rate * history
        spec = StateSpec(name, tuple(sized), axis, past, rate, history)
        self.states.append(spec)
        self.builder.input(name, TensorProto.FLOAT, self._declared(spec))
        return spec

    def join(self, spec: StateSpec, x: str, before: str | None = None) -> str:
        """Frames `x` behind their past: the last `past` + T of them, or all slots of a history.

        Args:
            before: what stands for the past of a stream that has not begun; None: zeros.
        """
        following = self.builder.output(f"next.{spec.name}", TensorProto.FLOAT, self._declared(spec))
        if spec.history:
            return self._write(spec, x, before, following)
        past = spec.name if before is None else self.op("Where", self.started, spec.name, before)
        joined = self.op("Concat", past, x, axis=spec.axis)
        self.slice(joined, self.builder.ints(-spec.past), self.builder.ints(END), spec.axis, following)
        return joined

    def window(self, spec: StateSpec, history: str, frames: str) -> str:
        """The last `past` + T frames of a history, of which T = `frames` [1] are new."""
        first = self.first(spec.past, spec.rate)
        begin, end = self.op("Sub", first, self.builder.ints(spec.past)), self.op("Add", first, frames)
        return self.slice(history, begin, end, spec.axis)

    def slice(self, x: str, begin: str, end: str, axis: int, out: str = "") -> str:
        """x[begin:end] along `axis`, from bounds [1]."""
        return self.op("Slice", x, begin, end, self.builder.ints(axis), out=out)

    def range(self, count: str) -> str:
        """0 .. count - 1, from a count [1]."""
        zero, one = (self.builder.constant(np.array(value, dtype=np.int64)) for value in (0, 1))
        return self.op("Range", zero, self.op("Squeeze", count), one)

    def length(self, x: str, axis: int) -> str:
        """[1], the size of an axis."""
        return self.op("Shape", x, start=axis, end=axis + 1)

    def by_stream(self, x: str) -> str:
        """[B] -> [B, 1, 1, 1]."""
        return self.op("Reshape", x, self.builder.ints(-1, 1, 1, 1))

    def _write(self, spec: StateSpec, x: str, before: str | None, following: str) -> str:
        first = self.first(spec.past, spec.rate)
        if before is not None:
            # When a stream begins, its past is written too, all of it; in other steps `begin` is `first` and the
            # past that is read and written back is empty.
            begin = self.op("Sub", first, self.op("Mul", self.begins, self.builder.ints(spec.past)))
            past = self.op("Where", self.started, self.slice(spec.name, begin, first, spec.axis), before)
            x, first = self.op("Concat", past, x, axis=spec.axis), begin
        return self.op("ScatterND", spec.name, self._places(spec.shape[0], x, first), x, out=following)

    def _places(self, rows: int, x: str, first: str) -> str:
        """Where the vectors of x [B, rows, T, N] go, int64 [B, rows, T, 3]; layers written alike share the nodes."""
        if (rows, first) not in self._written:
            streams = self.by_stream(self.range(self.length(x, 0)))
            heads = self.builder.constant(np.arange(rows).reshape(1, rows, 1, 1))
            slots = self.op("Add", self.range(self.length(x, 2)), first)
            slots = self.op("Reshape", slots, self.builder.ints(1, 1, -1, 1))
            shape = self.op("Concat", self.op("Shape", x, end=3), self.builder.ints(1), axis=0)
            parts = [self.op("Expand", part, shape) for part in (streams, heads, slots)]
            self._written[rows, first] = self.op("Concat", *parts, axis=3)
        return self._written[rows, first]

    def _first(self, past: int, rate: int) -> str:
        """[1], the slot of this step's first frame in a history."""
        return self.op("Add", self.op("Mul", "slot", self.builder.ints(rate)), self.builder.ints(past))

    def _declared(self, spec: StateSpec) -> list[int | str]:
        shape: list[int | str] = ["batch", *spec.shape]
        if spec.history:
            shape[spec.axis] = f"{spec.name}.slots"
        return shape
