"""Which of ONNX Runtime's 8-bit products to export for this machine: the fastest of those whose sums are exact.

Weights as signed bytes are the fast way where the processor multiplies unsigned by signed bytes and sums four products
in 32 bits (VNNI, AMX, the dot products of ARM). Without such an instruction the runtime sums pairs in 16 bits, which
saturate; weights as unsigned bytes are widened first there, which is exact and a fifth slower. Tables of processors
would be out of date, so both are tried for a fraction of a second, and the choice is remembered in the user's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from typing import Any, Literal, NamedTuple

import numpy as np

from tokenizer.errors import InputError
from tokenizer.files import cache_folder, write_atomically
from tokenizer.machine import processor

Kernel = Literal["signed", "unsigned"]
KERNELS: tuple[Kernel, ...] = ("signed", "unsigned")
INPUTS, OUTPUTS, COPIES = 1024, 1024, 24  # of a trial: weights that no cache of a core holds
ROWS = 4  # frames of a chunk
ROUNDS = 12  # the best of so many counts: other work on the machine only adds


class Trial(NamedTuple):
    """What a kernel does on this machine: whether its sums are exact, and milliseconds a million weights."""

    exact: bool
    milliseconds: float


def chosen_kernel() -> Kernel:
    """The kernel for 8-bit exports of this machine, measured once and remembered."""
    return best_of(remembered_trials())


def best_of(trials: dict[Kernel, Trial]) -> Kernel:
    """The fastest of the exact ones; if neither is, "unsigned", which cannot saturate."""
    exact = {kernel: trial.milliseconds for kernel, trial in trials.items() if trial.exact}
    return min(exact, key=lambda kernel: exact[kernel]) if exact else "unsigned"


def remembered_trials() -> dict[Kernel, Trial]:
    """The trials of this processor and this ONNX Runtime, from the cache where they have been made before."""
    import onnxruntime

    identity = repr((processor(), onnxruntime.__version__))
    path = cache_folder() / "kernels" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        raw = json.loads(path.read_text(encoding="utf-8"))
        return {kernel: Trial(bool(raw[kernel][0]), float(raw[kernel][1])) for kernel in KERNELS}
    trials = try_kernels()
    with contextlib.suppress(OSError, InputError):  # a cache that cannot be written costs a second each time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(trials).encode())
    return trials


def try_kernels() -> dict[Kernel, Trial]:
    """Run both kernels, in turns: about a second."""
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 256, (ROWS, INPUTS)).astype(np.uint8)
    rows[0] = 255  # next to weights of 127: pairs beyond 16 bits
    weights = generator.integers(-127, 128, (INPUTS, OUTPUTS)).astype(np.int16)
    weights[:, 0] = 127
    expected = (rows.astype(np.int64) - 128) @ weights
    sessions = {kernel: _session(kernel, weights) for kernel in KERNELS}
    results: dict[Kernel, np.ndarray] = {}
    best = dict.fromkeys(KERNELS, float("inf"))
    for _ in range(ROUNDS):
        for kernel, session in sessions.items():
            began = time.perf_counter()
            (results[kernel],) = session.run(None, {"rows": rows})
            best[kernel] = min(best[kernel], time.perf_counter() - began)
    millions = COPIES * INPUTS * OUTPUTS / 1e6
    return {
        # Sums below 2^24 are exact in float32, too; all are sums of COPIES equal products.
        kernel: Trial(bool(np.allclose(results[kernel], COPIES * expected, rtol=1e-5)), 1000 * best[kernel] / millions)
        for kernel in KERNELS
    }


def _session(kernel: Kernel, weights: np.ndarray) -> Any:
    """COPIES products of the same bytes by weights of their own, summed up."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    stored = weights.astype(np.int8) if kernel == "signed" else (weights + 128).astype(np.uint8)
    one = numpy_helper.from_array(np.float32(1), "one")
    zero = numpy_helper.from_array(np.uint8(128), "zero")
    names = [f"product_{index}" for index in range(COPIES)]
    right_zero = "" if kernel == "signed" else "zero"
    nodes = [
        helper.make_node(
            "MatMulIntegerToFloat",
            ["rows", f"weights_{name}", "one", "one", "zero", right_zero],
            [name],
            domain="com.microsoft",
        )
        for name in names
    ]
    nodes.append(helper.make_node("Sum", names, ["sum"]))
    graph = helper.make_graph(
        nodes,
        "trial",
        [helper.make_tensor_value_info("rows", TensorProto.UINT8, [ROWS, INPUTS])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [ROWS, OUTPUTS])],
        [one, zero, *(numpy_helper.from_array(stored, f"weights_{name}") for name in names)],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
