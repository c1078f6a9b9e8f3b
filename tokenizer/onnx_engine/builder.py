"""Writing an ONNX graph node by node, with weights as float32 or as 8 bits in blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor

OPSET = 20  # the first with Gelu
IR_VERSION = 10
CONTRIB = "com.microsoft"  # ONNX Runtime's own operators; only 8-bit graphs use them
BLOCK = 64  # weights of a column that share a scale; the runtime's sums then do not depend on the number of rows
SMALLEST = 32  # a matrix with a side shorter than this keeps float32: there is nothing to gain


class GraphBuilder:
    """Collects nodes, constants, inputs and outputs; a value is known by its name.

    Args:
        int8: store the right side of large products as 8 bits with a float32 scale a block. The runtime then rounds
            each row's blocks of the left side to 8 bits too, so rows do not influence one another.
    """

    def __init__(self, int8: bool) -> None:
        self.int8 = int8
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
        """x [..., in] times weight [out, in] transposed, plus bias [out]; `exact` keeps float32 in an 8-bit graph."""
        if self.int8 and not exact and min(weight.shape) >= SMALLEST:
            blocks, scales = quantize(weight)
            inputs = [x, self._store(f"{name}.blocks", blocks), self._store(f"{name}.scales", scales)]
            if bias is not None:
                inputs += ["", "", self.weight(f"{name}.bias", bias)]
            sizes: dict[str, Any] = {"N": weight.shape[0], "K": weight.shape[1], "block_size": BLOCK}
            # accuracy_level 4: products in 8 bits
            return self.op("MatMulNBits", *inputs, domain=CONTRIB, bits=8, accuracy_level=4, **sizes)
        y = self.op("MatMul", x, self.weight(f"{name}.kernel", weight.T))
        return y if bias is None else self.op("Add", y, self.weight(f"{name}.bias", bias))

    def model(self, name: str) -> ModelProto:
        """The finished graph."""
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, list(self._weights.values()))
        opsets = [helper.make_opsetid("", OPSET)] + [helper.make_opsetid(CONTRIB, 1)] * self.int8
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="focalstream")

    def _store(self, name: str, value: np.ndarray) -> str:
        assert name not in self._weights, name
        self._weights[name] = numpy_helper.from_array(value, name)
        return name


def quantize(weight: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric 8-bit blocks along the input side, as `MatMulNBits` reads them.

    Args:
        weight: [out, in].

    Returns:
        uint8 [out, blocks, BLOCK], of which 128 stands for zero, and float32 scales [out * blocks].
    """
    columns = torch.nn.functional.pad(weight.detach().float(), (0, -weight.shape[1] % BLOCK))
    columns = columns.unflatten(1, (-1, BLOCK))
    scales = columns.abs().amax(-1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    blocks = (columns / scales[..., None]).round() + 128
    return blocks.to(torch.uint8).numpy(), scales.flatten().numpy()
