"""What an exported folder says of itself: `codec.json` beside the graphs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tokenizer.config import CodecConfig
from tokenizer.errors import InputError
from tokenizer.onnx_engine.kernels import Kernel

MANIFEST = "codec.json"
VERSION = 4  # of the graphs and this file; a cached export of another version is made again
READABLE = (3, VERSION)  # 3 has other graphs with the same inputs and outputs, and names no kernel
SAMPLE, SAMPLE_EVERY = 1 << 12, 1 << 18  # bytes
PRECISIONS = ("fp32", "int8")


class StateSpec(NamedTuple):
    """One state of a graph: input `name`, output `next.<name>`, zeros before a stream begins.

    shape: without the batch; where it is a history, with `past` + `rate` slots of time, and it may have more.
    axis: where time runs, counted with the batch.
    past: frames that are looked back on.
    rate: frames a chunk.
    history: whether a step writes its frames at slot `past` + `rate` x the graph's input `slot`.
    """

    name: str
    shape: tuple[int, ...]
    axis: int
    past: int
    rate: int
    history: bool

    @property
    def window(self) -> tuple[int, ...]:
        """The shape, without the batch, of what the next step needs."""
        shape = list(self.shape)
        shape[self.axis - 1] = self.past
        return tuple(shape)

    def slots(self, first: int, count: int) -> tuple[slice, ...]:
        """The index of `count` slots of an array of this state."""
        return (slice(None),) * self.axis + (slice(first, first + count),)


@dataclass(frozen=True)
class Manifest:
    """A codec that was exported: its configuration, precision and states; `fingerprint` is that of the weights.

    kernel: of its 8-bit products (`tokenizer.onnx_engine.kernels`); None in float32.
    files: bytes and `sampled_digest` of each other file of the folder that is needed.
    """

    config: CodecConfig
    fingerprint: str
    precision: str
    kernel: Kernel | None
    files: dict[str, tuple[int, str]]
    encode_states: list[StateSpec]
    decode_states: list[StateSpec]

    def to_json(self) -> str:
        fields: dict[str, Any] = {"version": VERSION, "fingerprint": self.fingerprint, "precision": self.precision}
        fields |= {"kernel": self.kernel, "files": self.files}
        for step, states in (("encode_step", self.encode_states), ("decode_step", self.decode_states)):
            fields[step] = [spec._asdict() for spec in states]
        return json.dumps(fields | {"config": self.config.to_dict()}, indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises InputError when the folder's `codec.json` is not one that this version writes, or a file is cut."""
        path = folder / MANIFEST
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            version = raw.pop("version")
            if version not in READABLE:
                raise InputError(
                    f"{path}: of version {version}; this program reads {' and '.join(map(str, READABLE))}. Export the "
                    "codec again"
                )
            states = {step: [_spec(entry) for entry in raw.pop(step)] for step in ("encode_step", "decode_step")}
            config, fingerprint, precision = (raw.pop(key) for key in ("config", "fingerprint", "precision"))
            kernel = raw.pop("kernel") if version >= 4 else None
            files = {str(name): (int(size), str(digest)) for name, (size, digest) in raw["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path}: not the description of an exported codec ({error}); export it again") from None
        for name, (size, digest) in files.items():
            found = (folder / name).stat().st_size if (folder / name).is_file() else 0
            if found != size:
                raise InputError(f"{folder / name}: has {found} bytes of {size}; export the codec again")
            if sampled_digest(folder / name) != digest:
                raise InputError(f"{folder / name}: its bytes are not those that were written; export the codec again")
        config = CodecConfig.from_dict(config, str(path))
        return cls(config, fingerprint, precision, kernel, files, states["encode_step"], states["decode_step"])


def sampled_digest(path: Path) -> str:
    """sha256 in hex over the first SAMPLE bytes of every SAMPLE_EVERY of a file.

    It finds what disks and crashes leave, zeros or other files in place of blocks, and reads a sixty-fourth of the
    bytes for that; it does not find a single changed bit.
    """
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        for begin in range(0, path.stat().st_size, SAMPLE_EVERY):
            file.seek(begin)
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()


def check_precision(precision: str) -> None:
    """Raise InputError unless ONNX Runtime runs it."""
    if precision not in PRECISIONS:
        raise InputError(f'precision {precision!r}: the engine "onnx" has {" and ".join(PRECISIONS)}')


def _spec(raw: dict[str, Any]) -> StateSpec:
    return StateSpec(**{**raw, "shape": tuple(raw["shape"])})
