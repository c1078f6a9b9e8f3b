"""Writing an ONNX graph node by node, with weights as float32 or as 8 bits.

An 8-bit product is integer arithmetic between two roundings, dynamic for the left side and symmetric for both:

    m = max |x| of the row      q = round(127 x / m) + 128      y = m / 127 * ((q - 128) @ W) * scale of the column

One scale a row keeps rows independent of one another, and one a column leaves the sum in integers. The runtime has two
kernels for such sums, of weights as signed or as unsigned bytes (`tokenizer.onnx_engine.kernels`); where both are
exact they give the same result.

Legend: N outputs, K inputs of a product.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor

from tokenizer.onnx_engine.kernels import Kernel

OPSET = 20  # the first with Gelu
IR_VERSION = 10
CONTRIB = "com.microsoft"  # ONNX Runtime's own operators; only 8-bit graphs use them
LEVELS = 127  # of a value's magnitude in 8 bits
ZERO = 128  # what stands for 0 in unsigned bytes
LONGEST = 2**15  # inputs of a product whose sum of bytes stays inside 32 bits
SMALLEST = 32  # a matrix with a side shorter than this keeps float32: there is nothing to gain


class Rows(NamedTuple):
    """The left side of 8-bit products: unsigned bytes [..., K] about 128, and each row's largest magnitude [..., 1]."""

    bytes: str
    largest: str


class GraphBuilder:
    """Collects nodes, constants, inputs and outputs; a value is known by its name.

    Args:
        kernel: of 8-bit products: "signed" or "unsigned" weights; None keeps float32.
    """

    def __init__(self, kernel: Kernel | None) -> None:
        self.kernel = kernel
        self._rows: dict[str, Rows] = {}
        self._nodes: list[Any] = []
        self._weights: dict[str, TensorProto] = {}
        self._constants: dict[tuple, str] = {}
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []

    def op(self, kind: str, *inputs: str, out: str = "", count: int = 1, domain: str = "", **attributes: Any) -> Any:
        """Add a node; the name of its output (`out` or a new one), or a list of `count` names."""
        stem = f"{kind}_{len(self._nodes)}"
        outputs = [out or stem] if count == 1 else [f"{stem}_{i}" for i in range(count)]
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=stem, domain=domain, **attributes))
        return outputs[0] if count == 1 else outputs

    def ints(self, *values: int) -> str:
        """An int64 constant [len(values)]."""
        return self.constant(np.array(values, dtype=np.int64))

    def floats(self, *values: float) -> str:
        """A float32 constant [len(values)]."""
        return self.constant(np.array(values, dtype=np.float32))

    def constant(self, value: np.ndarray) -> str:
        """A small constant; equal ones are stored once."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            self._constants[key] = self._store(f"constant_{len(self._constants)}", value)
        return self._constants[key]

    def weight(self, name: str, value: Tensor) -> str:
        """A float32 weight."""
        return self._store(name, value.detach().float().contiguous().numpy())

    def input(self, name: str, kind: int, shape: list[int | str]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, kind: int, shape: list[int | str]) -> str:
        """Declare the output `name`, which some node must make; an Identity in between would copy it."""
        self._outputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def dense(self, x: str, name: str, weight: Tensor, bias: Tensor | None = None, exact: bool = False) -> str:
        """x [..., K] times weight [N, K] transposed, plus bias [N]; `exact` keeps float32 in an 8-bit graph."""
        if exact or not self.rounds(weight):
            y = self.op("MatMul", x, self.weight(f"{name}.kernel", weight.T))
        else:
            rows = self.rows(x)
            y = self.op("Mul", self.product(rows.bytes, name, weight), rows.largest)
        return y if bias is None else self.op("Add", y, self.weight(f"{name}.bias", bias))

    def rounds(self, weight: Tensor) -> bool:
        """Whether a product with weight [N, K] is done in 8 bits."""
        return self.kernel is not None and min(weight.shape) >= SMALLEST and weight.shape[1] <= LONGEST

    def rows(self, x: str, largest: str | None = None) -> Rows:
        """x [..., K] in 8 bits, whose rows have the magnitudes `largest` [..., 1]; None: computed here.

        A row of zeros becomes whatever byte stands for 0 / 0, whose product is then multiplied by 0.
        """
        if x not in self._rows:
            if largest is None:
                largest = self.op("ReduceMax", self.op("Abs", x), self.ints(-1))
            zero = self.constant(np.array(ZERO, dtype=np.uint8))
            step = self.constant(np.array(1 / LEVELS, dtype=np.float32))
            self._rows[x] = Rows(self.op("QuantizeLinear", self.op("Div", x, largest), step, zero), largest)
        return self._rows[x]

    def product(self, left: str, name: str, weight: Tensor) -> str:
        """Bytes of `rows` [..., K] times weight [N, K] transposed, still to be multiplied by the rows' magnitudes."""
        values, scales = quantize(weight)
        step = self.constant(np.array(1 / LEVELS, dtype=np.float32))
        zero = self.constant(np.array(ZERO, dtype=np.uint8))
        if self.kernel == "signed":
            right, right_zero = values.astype(np.int8), ""
        else:
            right, right_zero = (values + ZERO).astype(np.uint8), zero
        stored = [self._store(f"{name}.bytes", right), step, self._store(f"{name}.scales", scales)]
        return self.op("MatMulIntegerToFloat", left, *stored, zero, right_zero, domain=CONTRIB)

    def model(self, name: str) -> ModelProto:
        """The finished graph."""
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, list(self._weights.values()))
        opsets = [helper.make_opsetid("", OPSET)] + [helper.make_opsetid(CONTRIB, 1)] * (self.kernel is not None)
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="focalstream")

    def _store(self, name: str, value: np.ndarray) -> str:
        assert name not in self._weights, name
        self._weights[name] = numpy_helper.from_array(value, name)
        return name


def quantize(weight: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric 8 bits with a scale an output.

    Args:
        weight: [N, K].

    Returns:
        int16 [K, N] of -127 to 127, and float32 scales [N].
    """
    weight = weight.detach().float()
    scales = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / LEVELS
    return (weight / scales[:, None]).round().T.to(torch.int16).contiguous().numpy(), scales.numpy()
