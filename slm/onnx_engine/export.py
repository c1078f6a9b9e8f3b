"""Language models as ONNX graphs, in the user's cache: `focalstream/lm` in $XDG_CACHE_HOME or ~/.cache.

A folder there is named by the model's files as they are now, so finding it reads none of them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from slm.onnx_engine.manifest import GRAPH, MANIFEST, VERSION, WEIGHTS, Manifest
from tokenizer.errors import InputError
from tokenizer.files import cache_folder, state_of
from tokenizer.onnx_engine.kernels import Kernel, chosen_kernel
from tokenizer.onnx_engine.manifest import check_precision, sampled_digest
from tokenizer.onnx_engine.runtime import missing

SOURCES = ("config.json", "vocabulary.json", "model.safetensors")


def cached(source: Path, precision: str) -> Path:
    """The exported folder of the model in the folder `source`; made when it is not there or is damaged.

    Raises:
        InputError: there is no such model, or the cache cannot be written.
    """
    check_precision(precision)
    kernel = chosen_kernel() if precision == "int8" else None
    form = precision if kernel is None else f"{precision}-{kernel}"
    folder = cache_folder() / "lm" / f"{_identity(source)}-{form}-{VERSION}"
    with contextlib.suppress(InputError):
        Manifest.read(folder)
        return folder
    try:
        export_lm(source, folder, precision, kernel)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}). Exported language models are kept there; set "
            "XDG_CACHE_HOME to a folder that can be written"
        ) from None
    return folder


def export_lm(source: Path, folder: Path, precision: str, kernel: Kernel | None = None) -> None:
    """Write the model in the folder `source` to `folder`, which appears whole or not at all.

    Args:
        source: as `slm.checkpoint.load_lm` reads it.
        folder: replaced when it is there.
        precision: "fp32" or "int8".
        kernel: of the 8-bit products; None: the one for this machine.

    Raises:
        InputError: for what `load_lm` raises it for, another precision, or where the package `onnx` is missing.
    """
    check_precision(precision)
    try:
        import onnx
    except ImportError:
        raise missing("onnx") from None
    from slm.checkpoint import load_lm
    from slm.model.decoding import DecodingWeights
    from slm.onnx_engine.graph import step_graph

    if precision == "int8":
        kernel = kernel or chosen_kernel()
    model, vocabulary = load_lm(source)
    config = model.config
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unfinished."))
    try:
        graph = step_graph(DecodingWeights(model), vocabulary.size, kernel)
        onnx.save_model(graph, unfinished / GRAPH, save_as_external_data=True, location=WEIGHTS, size_threshold=1024)
        vocabulary.save(unfinished / "vocabulary.json")
        files = {
            name: ((unfinished / name).stat().st_size, sampled_digest(unfinished / name)) for name in (GRAPH, WEIGHTS)
        }
        manifest = Manifest(
            context=config.context,
            layers=config.layers,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_width=config.head_width,
            rope_theta=config.rope_theta,
            vocabulary_size=vocabulary.size,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            precision=precision,
            kernel=kernel,
            files=files,
        )
        (unfinished / MANIFEST).write_text(manifest.to_json(), encoding="utf-8", newline="\n")
        unfinished.chmod(0o755)
        if folder.exists():  # damaged, or of another version
            shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # another process may have made it meanwhile, from the same weights
            os.replace(unfinished, folder)
        Manifest.read(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _identity(source: Path) -> str:
    """A name for the model's files as they are now. Raises InputError if one is missing."""
    for name in SOURCES:
        if not (source / name).is_file():
            raise InputError(f"language model {source}: has no {name}; expected {', '.join(SOURCES)}")
    return state_of(source / name for name in SOURCES)[:32]
