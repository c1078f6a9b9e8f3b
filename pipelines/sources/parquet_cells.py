"""Parquet files: opened anywhere, and the bytes of single cells, of which the neighbours are kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from pipelines.sources.pieces import ParquetCell
from pipelines.storage.places import is_url, open_place
from tokenizer.errors import InputError

KEPT_GROUPS = 2  # columns of row groups in memory: cuts are read in the order of the file

_groups: OrderedDict[tuple[str, str, int], Any] = OrderedDict()
_lock = threading.Lock()


def open_parquet(place: str) -> Any:
    """A `pyarrow.parquet.ParquetFile`.

    Raises:
        InputError: pyarrow is not installed, or the file is no Parquet.
        OSError: it cannot be opened.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{place}: reading Parquet needs pyarrow: pip install 'focalstream[datasets]'") from None
    try:
        return parquet.ParquetFile(open_place(place) if is_url(place) else place)
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{place}: not a Parquet file ({error}); copy it again") from error


def read_cell(cell: ParquetCell) -> bytes:
    """The bytes in a cell. Raises FileNotFoundError where it is null, and what reading raises."""
    key = (cell.path, cell.column, cell.group)
    with _lock:
        if key not in _groups:
            with open_parquet(cell.path) as file:
                _groups[key] = file.read_row_group(cell.group, columns=[f"{cell.column}.bytes"]).column(0)
            while len(_groups) > KEPT_GROUPS:
                _groups.popitem(last=False)
        _groups.move_to_end(key)
        content = _groups[key][cell.row].as_py()
    if not content or content["bytes"] is None:
        raise FileNotFoundError(0, "the cell has no bytes", str(cell))
    return content["bytes"]
