"""A codec as a folder: `encode_step.onnx`, `decode_step.onnx`, the weights of each, `codec.json` and README.md."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tokenizer.errors import InputError
from tokenizer.files import check_new_folder, sync_folder
from tokenizer.model import CodecModel
from tokenizer.onnx_engine.kernels import Kernel, chosen_kernel
from tokenizer.onnx_engine.manifest import MANIFEST, Manifest, check_precision, sampled_digest
from tokenizer.onnx_engine.runtime import missing

LARGE = 1024  # bytes from which a tensor lies in the weights file, which the runtime maps into memory


def export(codec: CodecModel, folder: Path, precision: str, kernel: Kernel | None = None) -> None:
    """Write `codec` to `folder`, which appears whole or not at all; one that is there keeps its owner and mode.

    Args:
        codec: a streaming codec in float32 on the CPU.
        folder: made here; it may be there and empty.
        precision: "fp32", or "int8": weights of the large products as 8 bits.
        kernel: of the 8-bit products; None: the one for this machine (`tokenizer.onnx_engine.kernels`).

    Raises:
        InputError: for another precision, a codec that does not stream, a folder that cannot be written or holds
            something, or where the package `onnx` is missing.
    """
    check_precision(precision)
    codec.check_causal()
    folder = folder.resolve()
    check_new_folder(folder)
    require_onnx()
    import onnx

    from tokenizer.onnx_engine.graphs import decode_graph, encode_graph
    from tokenizer.onnx_engine.readme import readme

    if precision == "fp32":
        kernel = None
    elif kernel is None:
        kernel = chosen_kernel()
    with _appearing(folder) as unfinished:
        states = []
        for name, graph in (("encode_step", encode_graph), ("decode_step", decode_graph)):
            model, specs = graph(codec, kernel)
            states.append(specs)
            onnx.save_model(
                model,
                unfinished / f"{name}.onnx",
                save_as_external_data=True,
                location=f"{name}.weights",
                size_threshold=LARGE,
            )
            del model
        files = {path.name: (path.stat().st_size, sampled_digest(path)) for path in sorted(unfinished.iterdir())}
        manifest = Manifest(codec.config, codec.fingerprint, precision, kernel, files, *states)
        (unfinished / MANIFEST).write_text(manifest.to_json(), encoding="utf-8", newline="\n")
        (unfinished / "README.md").write_text(readme(codec, manifest), encoding="utf-8", newline="\n")
        for path in unfinished.iterdir():
            path.chmod(0o644)


def require_onnx() -> None:
    """Raise InputError where the package that writes graphs is missing."""
    if importlib.util.find_spec("onnx") is None:
        raise missing("onnx")


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder under another name that becomes `folder` at the end, or whose files move into it where it is there."""
    is_there = folder.is_dir()
    beside = folder if is_there else folder.parent
    try:
        beside.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=beside, prefix=".unfinished."))
    except OSError as error:
        raise InputError(f"{folder}: cannot be {'written' if is_there else 'made'} ({error.strerror})") from None
    try:
        yield unfinished
        unfinished.chmod(0o755)
        try:
            if is_there:
                for path in sorted(unfinished.iterdir(), key=lambda path: path.name == MANIFEST):  # without it: nothing
                    os.replace(path, folder / path.name)
            else:
                os.replace(unfinished, folder)
        except OSError as error:
            # Another process may have made the same folder meanwhile, from the same weights.
            if not (folder / MANIFEST).is_file():
                raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
        sync_folder(beside)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
