"""What an exported language model says of itself: `lm.json` beside its graph and its vocabulary."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from tokenizer.errors import InputError
from tokenizer.onnx_engine.kernels import Kernel
from tokenizer.onnx_engine.manifest import sampled_digest

MANIFEST, GRAPH, WEIGHTS = "lm.json", "step.onnx", "step.weights"
VERSION = 1  # of the graph and this file; a cached export of another version is made again


@dataclass(frozen=True)
class Manifest:
    """An exported model: sizes as in `slm.model.transformer.ModelConfig`.

    vocabulary_size: ids.
    parameters: of the model it was made from.
    precision: "fp32" or "int8", and the `kernel` of the latter's products.
    files: bytes and `sampled_digest` of the graph and its weights.
    """

    context: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    rope_theta: float
    vocabulary_size: int
    parameters: int
    precision: str
    kernel: Kernel | None
    files: dict[str, tuple[int, str]]

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, **dataclasses.asdict(self)}, indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises InputError when `lm.json` is not one that this version writes, or a file is damaged."""
        path = folder / MANIFEST
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            version = raw.pop("version")
            if version != VERSION:
                raise InputError(f"{path}: of version {version}; this program reads {VERSION}. Export it again")
            raw["files"] = {str(name): (int(size), str(digest)) for name, (size, digest) in raw["files"].items()}
            manifest = cls(**raw)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not the description of an exported language model ({error})") from None
        for name, (size, digest) in manifest.files.items():
            found = folder / name
            if not found.is_file() or found.stat().st_size != size or sampled_digest(found) != digest:
                raise InputError(f"{found}: is not as it was written; delete {folder}, and it is made again")
        return manifest
