"""Arrays that are made once for each machine and content, and mapped from the user's cache by every process after that.

What many processes map they share in memory. Where nothing can be kept (no home, a full or read-only disk), each
process makes its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipelines.storage.locks import flocked
from tokenizer.errors import InputError
from tokenizer.files import cache_folder

Arrays = dict[str, np.ndarray]


def kept_arrays(key: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays of `make`, read-only, from the cache or put there.

    Args:
        key: names the content that they are made of, and the way they are made; a file name.
        make: called by one process of the machine while the others wait. Its errors are raised.
    """
    with contextlib.ExitStack() as held:
        try:
            place = cache_folder() / "indexes" / key
            place.parent.mkdir(parents=True, exist_ok=True)
            if (found := _read(place)) is not None:
                return found
            held.enter_context(flocked(place.with_name(f".{key}.lock"), wait=True))
        except (InputError, OSError):
            return make()
        if (found := _read(place)) is not None:  # another process has made them meanwhile
            return found
        arrays = make()
        _write(place, arrays)
        return _read(place) or arrays


def _read(place: Path) -> Arrays | None:
    """The arrays, mapped; None if they are not there or damaged."""
    try:
        return {path.stem: np.asarray(np.load(path, mmap_mode="r")) for path in place.iterdir()}
    except (OSError, ValueError, EOFError):
        return None


def _write(place: Path, arrays: Arrays) -> None:
    """Write all or nothing."""
    temporary = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=".unfinished.", dir=place.parent))
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(temporary, place)
    except OSError:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
