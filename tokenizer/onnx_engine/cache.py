"""Exported codecs in the user's cache: `focalstream/onnx` in $XDG_CACHE_HOME or ~/.cache.

A folder there is named by the fingerprint of the weights. Computing that means reading all of them, so
`focalstream/sources` remembers the fingerprints of files that were read before, for as long as they do not change.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from tokenizer import checkpoint
from tokenizer.errors import InputError
from tokenizer.files import cache_folder, state_of, write_atomically
from tokenizer.model import CodecModel
from tokenizer.onnx_engine.export import export, require_onnx
from tokenizer.onnx_engine.kernels import chosen_kernel
from tokenizer.onnx_engine.manifest import VERSION, Manifest, check_precision


def cached(name: str, precision: str) -> Path:
    """The exported folder of the codec `name`; made when it is not there or is damaged.

    Raises:
        InputError: where there is no such codec, or the cache cannot be written.
    """
    check_precision(precision)
    home, kernel = cache_folder(), chosen_kernel() if precision == "int8" else None
    form = precision if kernel is None else f"{precision}-{kernel}"
    remembered = home / "sources" / state_of(checkpoint.locate(name))
    with contextlib.suppress(OSError, UnicodeDecodeError, InputError):
        folder = _folder(home, remembered.read_text(encoding="ascii"), form)
        Manifest.read(folder)
        return folder
    codec = CodecModel.with_weights(*checkpoint.load(name), name)
    folder = _folder(home, codec.fingerprint, form)
    try:
        Manifest.read(folder)
    except InputError:  # not there, or damaged: it is ours to make again
        require_onnx()
        try:
            if folder.is_dir():
                shutil.rmtree(folder)
            folder.unlink(missing_ok=True)
            export(codec, folder, precision, kernel)
        except (OSError, InputError) as error:
            raise InputError(
                f"{error}. Exported codecs are kept there; set XDG_CACHE_HOME to a folder that can be written, or use "
                "`focalstream export` and give its folder as codec"
            ) from None
    with contextlib.suppress(OSError, InputError):  # a read-only cache only costs time
        remembered.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(remembered, codec.fingerprint.encode("ascii"))
    return folder


def _folder(home: Path, fingerprint: str, form: str) -> Path:
    return home / "onnx" / f"{fingerprint}-{form}-{VERSION}"
