"""The static folder: page, engine, graphs, onnxruntime-web, examples, licences, and a manifest that names them all.

The large files are compressed, because many static hosts do not compress what they send; the page unpacks them. Their
names end in `.gzip`, because some hosts would declare a `.gz` as compressed in transfer, and browsers unpack that.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pipelines.pages.html import base_css
from slm.generation.silence import silent_codes
from slm.onnx_engine.export import export_lm
from slm.onnx_engine.manifest import Manifest as LmManifest
from slm.serve.assets import EXAMPLES, PAGE, example_wav
from slm.vocabulary import BOS, EOS, FIRST_CODE, PAD, Vocabulary
from slm.web.runtime import BINARY, FILES, LOADER, MODULE
from slm.web.runtime import VERSION as RUNTIME_VERSION
from tokenizer.errors import InputError
from tokenizer.files import check_new_folder
from tokenizer.model import CodecModel
from tokenizer.onnx_engine.arrays import ArrayCodec
from tokenizer.onnx_engine.export import export
from tokenizer.onnx_engine.kernels import Kernel
from tokenizer.onnx_engine.manifest import Manifest as CodecManifest

VERSION = 1  # of the manifest
MANIFEST = "focalstream.json"
HERE = Path(__file__).resolve().parent
KERNEL: Kernel = "unsigned"  # exact in WebAssembly, and the faster of the two there
STEPS = {"encode_step": "codec", "decode_step": "codec", "step": "lm"}  # graphs, and the model each belongs to
# Of the server's page: what this one has in another form or does not need.
SERVERS = {"index.html", "source.js", "connection.js", "opus.js"}
# The page cannot send anything anywhere: a browser refuses connections to other addresses than its own.
POLICY = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; img-src 'self' data: blob:"


def export_web(
    codec: CodecModel, lm: Path, name: str, lm_name: str, folder: Path, precision: str, runtime: dict[str, bytes]
) -> None:
    """Write the folder, which appears whole or not at all.

    Args:
        codec: a streaming codec in float32 on the CPU.
        lm: the folder of a language model on its tokens, as `slm.checkpoint.locate` gives it.
        name, lm_name: what the page calls them.
        folder: made here; it may be there and empty.
        precision: of both models, "fp32" or "int8".
        runtime: onnxruntime-web, as `slm.web.runtime.runtime_files` gives it.

    Raises:
        InputError: the codec is not the language model's or does not stream, the folder cannot be written or holds
            something, or what exporting the models raises it for.
    """
    codec.check_causal()
    vocabulary = Vocabulary.load(lm / "vocabulary.json")
    vocabulary.check(f"codec '{name}'", codec.fingerprint, codec.codebook_size)
    folder = folder.resolve()
    check_new_folder(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unfinished."))
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror})") from None
    try:
        with tempfile.TemporaryDirectory(dir=unfinished) as scratch:
            models = Path(scratch)
            kernel = KERNEL if precision == "int8" else None
            export(codec, models / "codec", precision, kernel)
            export_lm(lm, models / "lm", precision, kernel)
            described = _describe_models(models, codec, name, lm_name, vocabulary)
            _write_models(models, unfinished / "models")
        _write_runtime(runtime, unfinished / "runtime")
        _write_page(unfinished)
        (unfinished / "LICENCES.txt").write_bytes((HERE / "licences.txt").read_bytes())
        (unfinished / "README.md").write_bytes((HERE / "space.md").read_bytes())
        _write_manifest(unfinished, described)
        unfinished.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        os.replace(unfinished, folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _describe_models(
    models: Path, codec: CodecModel, name: str, lm_name: str, vocabulary: Vocabulary
) -> dict[str, dict[str, Any]]:
    """What the engine has to know of both, from what their exports say."""
    exported, lm = CodecManifest.read(models / "codec"), LmManifest.read(models / "lm")
    rates = ["sample_rate_in", "sample_rate_out", "chunk_samples", "tokens_per_chunk", "samples_per_token"]
    rates += ["hop_samples", "token_rate", "codebook_size", "bitrate"]
    sizes = ("parameters", "context", "layers", "heads", "kv_heads", "head_width", "rope_theta", "vocabulary_size")
    return {
        "codec": {
            "name": name,
            "fingerprint": exported.fingerprint,
            "precision": exported.precision,
            **{key: getattr(codec, key) for key in rates},
            "encode_states": [spec._asdict() for spec in exported.encode_states],
            "decode_states": [spec._asdict() for spec in exported.decode_states],
            "silent_codes": silent_codes(ArrayCodec(models / "codec", exported.precision, 1)),
        },
        "lm": {
            "name": lm_name,
            "precision": lm.precision,
            **{key: getattr(lm, key) for key in sizes},
            "ids": {"pad": PAD, "bos": BOS, "eos": EOS, "first_code": FIRST_CODE},
            "codebook_size": vocabulary.codebook_size,
            "codec_fingerprint": vocabulary.codec_fingerprint,
        },
    }


def _write_models(models: Path, folder: Path) -> None:
    folder.mkdir()
    for step, model in STEPS.items():
        for suffix in ("onnx", "weights"):
            path = models / model / f"{step}.{suffix}"
            _write_packed(folder / f"{step}.{suffix}.gzip", path.read_bytes())


def _write_runtime(runtime: dict[str, bytes], folder: Path) -> None:
    folder.mkdir()
    for name, data in runtime.items():
        if name == BINARY:
            _write_packed(folder / f"{name}.gzip", data)
        else:
            (folder / name).write_bytes(data)


def _write_packed(path: Path, data: bytes) -> None:
    """The same bytes for the same data."""
    path.write_bytes(gzip.compress(data, 6, mtime=0))  # 9: half a percent less, in twice the time


def _write_page(folder: Path) -> None:
    """The server's page with this folder's source of continuations, the engine, and the examples."""
    index = (PAGE / "index.html").read_text(encoding="utf-8")
    charset = '<meta charset="utf-8">\n'
    assert index.count(charset) == 1
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
    (folder / "index.html").write_text(index.replace(charset, charset + policy), encoding="utf-8", newline="\n")
    shutil.copytree(HERE / "engine", folder / "engine")
    (folder / "page").mkdir()
    for path in PAGE.iterdir():
        if path.name not in SERVERS and path.suffix in (".js", ".css"):
            shutil.copyfile(path, folder / "page" / path.name)
    for name in ("source.js", "worker.js"):
        shutil.copyfile(HERE / "page" / name, folder / "page" / name)
    (folder / "page" / "base.css").write_text(base_css(), encoding="utf-8", newline="\n")
    (folder / "examples").mkdir()
    (folder / "examples" / "examples.json").write_text(json.dumps(EXAMPLES) + "\n", encoding="utf-8", newline="\n")
    for name in EXAMPLES:
        (folder / "examples" / f"{name}.wav").write_bytes(example_wav(name))


def _write_manifest(folder: Path, described: dict[str, dict[str, Any]]) -> None:
    """`focalstream.json`, and last the service worker, which keeps the small files under the name of all contents."""
    worker = (HERE / "page" / "service_worker.js").read_text(encoding="utf-8")
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            files[path.relative_to(folder).as_posix()] = {
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
    content = hashlib.sha256(json.dumps([files, described, worker], sort_keys=True).encode()).hexdigest()[:16]
    runtime = {"module": MODULE, "loader": LOADER, "binary": f"{BINARY}.gzip"}
    assert set(FILES) == {MODULE, LOADER, BINARY}
    manifest = {
        "version": VERSION,
        "content": content,
        **described,
        "graphs": {step: [f"models/{step}.{suffix}.gzip" for suffix in ("onnx", "weights")] for step in STEPS},
        "runtime": {"version": RUNTIME_VERSION, **{part: f"runtime/{name}" for part, name in runtime.items()}},
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8", newline="\n")
    kept = ["./", MANIFEST, *(name for name in files if not name.endswith((".gzip", ".md", ".txt")))]
    for constant, empty, value in (("CONTENT", '""', content), ("FILES", "[]", kept)):
        line = f"const {constant} = {empty};"
        assert worker.count(line) == 1
        worker = worker.replace(line, f"const {constant} = {json.dumps(value)};")
    (folder / "service_worker.js").write_text(worker, encoding="utf-8", newline="\n")
