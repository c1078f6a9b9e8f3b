"""What this machine has, what is chosen on it and why, and how fast the shipped models run: `focalstream doctor`."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tokenizer import machine
from tokenizer.errors import InputError
from tokenizer.machine import Choice

PACKAGES = (
    *("focalstream", "torch", "numpy", "onnxruntime", "onnx", "lhotse", "webdataset", "soundfile", "soxr"),
    *("safetensors", "starlette", "ray", "s3fs"),
)
MODEL = "small"  # the shipped codec and language model
CONTEXT_TOKENS = 100  # two seconds of speech before the language model is timed


def found() -> dict[str, Any]:
    """The machine: processor, instructions, cores, memory in bytes, GPUs, system."""
    import torch

    processor = machine.processor()
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": processor.name,
        "instructions": list(processor.instructions),
        "cores": machine.available_cores(),
        "memory_bytes": machine.memory_bytes(),
        "gpus": devices,
        "system": platform.platform(),
        "python": platform.python_version(),
        "pytorch_instructions": torch.backends.cpu.get_cpu_capability(),
    }


def versions() -> dict[str, str | None]:
    """Versions of what matters for a bug report; None: not installed."""
    stated: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            stated[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            stated[name] = None
    return stated


def chosen() -> dict[str, Choice]:
    """What the program takes by itself here, and why."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    choices = {f"training precision on {name}": machine.training_precision(name) for name in {"cpu": 0, device: 0}}
    if not has_onnx():
        choices["engine of serve"] = Choice("torch", 'onnxruntime is not installed; pip install "focalstream[onnx]"')
        return choices
    choices["engine of serve"] = Choice("onnx", "several times as fast as PyTorch on a CPU")
    choices["8-bit kernel"] = kernel_choice()
    return choices


def kernel_choice() -> Choice:
    """The kernel of 8-bit exports, with what was measured."""
    from tokenizer.onnx_engine.kernels import best_of, remembered_trials

    trials = remembered_trials()
    measured = ", ".join(
        f"{kernel} {1000 * trial.milliseconds:.0f} us a million weights{'' if trial.exact else ' but saturates'}"
        for kernel, trial in trials.items()
    )
    return Choice(best_of(trials), measured)


def has_onnx() -> bool:
    """Whether models can be exported and run on ONNX Runtime."""
    return bool(find_spec("onnx") and find_spec("onnxruntime"))


def speeds(seconds: float) -> dict[str, float]:
    """How many times faster than real time the shipped models stream, one stream on one thread, each for `seconds`."""
    import torch

    from tokenizer import Codec

    engines = [("torch", "fp32"), *((("onnx", "fp32"), ("onnx", "int8")) if has_onnx() else ())]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measured = {}
        for engine, precision in engines:
            codec = Codec.from_pretrained(MODEL, engine=engine, precision=precision)
            chunk = 0.001 * codec.latency_ms
            measured[f"codec, {engine} {precision}"] = chunk / median_time(codec_step(codec), seconds)
            for name, step, token_rate in language_models(engine, precision):
                measured[name] = 1 / token_rate / median_time(step, seconds)
        return measured
    finally:
        torch.set_num_threads(threads)


def codec_step(codec: Any) -> Callable[[], None]:
    """Encodes and decodes one chunk of noise of a live stream."""
    import torch

    state = codec.init_state(1)
    chunk = 0.1 * torch.randn(1, codec.chunk_samples, generator=torch.Generator().manual_seed(0))

    def step() -> None:
        nonlocal state
        tokens, state = codec.encode_step(chunk, state)
        _, state = codec.decode_step(tokens, state)

    return step


def language_models(engine: str, precision: str) -> list[tuple[str, Callable[[], None], float]]:
    """The shipped language model on an engine: its name, a step of one token, and tokens a second of speech."""
    from slm.checkpoint import load_lm, locate
    from slm.vocabulary import FIRST_CODE, Vocabulary

    try:
        folder = locate(MODEL)
    except InputError:  # an installation without weights
        return []
    name, rate = f"language model, {engine} {precision}", Vocabulary.load(folder / "vocabulary.json").token_rate
    prompt = np.arange(FIRST_CODE, FIRST_CODE + CONTEXT_TOKENS)[None]
    if engine == "onnx":
        return [(name, onnx_lm_step(folder, precision, prompt), rate)]
    import torch

    from slm.model.decoding import DecodingWeights, decode_one_token, make_cache, prefill

    model, _ = load_lm(folder)
    weights, cache = DecodingWeights(model), make_cache(model, 1)
    tokens = torch.from_numpy(prompt)
    prefill(weights, tokens, torch.tensor([tokens.shape[1]]), cache)
    return [(name, lambda: (decode_one_token(weights, tokens[:, 0], cache), None)[1], rate)]


def onnx_lm_step(folder: Path, precision: str, prompt: np.ndarray) -> Callable[[], None]:
    """A step of the language model in `folder` on ONNX Runtime, after a prompt [1, T]."""
    from slm.onnx_engine.arrays import ArrayLanguageModel
    from slm.onnx_engine.export import cached

    model = ArrayLanguageModel(cached(folder, precision), precision, threads=1)
    cache = model.make_cache(1)
    model.prefill(prompt, np.array([prompt.shape[1]]), cache)
    return lambda: (model.decode_one_token(prompt[:, 0], cache), None)[1]


def median_time(step: Callable[[], None], seconds: float) -> float:
    """Seconds of a step, in the middle of those that fit in `seconds`, after a few that warm up."""
    for _ in range(3):
        step()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return float(np.median(times))
