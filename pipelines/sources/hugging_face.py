"""Cuts of a Parquet file with a column of audio, as Hugging Face `datasets` stores them: a row is a cut.

The audio is a struct of `bytes` and `path`. All other columns become custom fields of the cut, and those with usual
names its supervision. The id is `FILE/ROW`, unless there is a column `id`. Planning reads the audio once, because
nothing else says how long it is.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

from pipelines.sources.cuts import PathRule, SourceCut
from pipelines.sources.parquet_cells import open_parquet
from pipelines.sources.pieces import ParquetCell
from pipelines.sources.whole_audio import unusable_cut, whole_audio_cut, with_metadata
from pipelines.storage.places import name_of, parent
from tokenizer.errors import InputError

log = logging.getLogger(__name__)


def read_parquet(place: str) -> Iterator[SourceCut]:
    """Every row, in order, lazily. A row whose audio cannot be read becomes a cut that tokenizing quarantines.

    Raises:
        InputError: it is no Parquet, or has no column of audio.
    """
    stem, rule = name_of(place).removesuffix(".parquet"), PathRule(parent(place))
    with open_parquet(place) as file:
        column, others = _columns(file.schema_arrow, place)
        number = 0
        for group in range(file.num_row_groups):
            try:
                rows = _rows(file, group, column, others)
            except (OSError, ValueError) as error:  # of the decoder, too
                count = file.metadata.row_group(group).num_rows
                detail = f"{place}: row group {group} with {count} rows cannot be read ({error})"
                yield unusable_cut(f"{stem}/{number:06d}", "damaged", detail)
                number += count
                continue
            for row, metadata in enumerate(rows):
                named = metadata.get("id")
                cut_id = named if isinstance(named, str) and named else f"{stem}/{number:06d}"
                source = {"type": "parquet", "source": f"{place}#{number}"}
                item = whole_audio_cut(cut_id, source, ParquetCell(place, column, group, row))
                yield with_metadata(item, metadata, rule)
                number += 1


def _columns(schema: Any, place: str) -> tuple[str, list[str]]:
    """The column of audio, and those that are kept: numbers, text, and lists and structs of these."""
    from pyarrow import types

    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        declared = {name: feature.get("_type") for name, feature in features.items()}
    except (KeyError, ValueError, TypeError, AttributeError):
        declared = {}
    audio = [
        field.name
        for field in schema
        if types.is_struct(field.type)
        and field.type.get_field_index("bytes") >= 0
        and declared.get(field.name, "Audio") == "Audio"
    ]
    if not audio:
        raise InputError(
            f"{place}: no column of audio among {', '.join(schema.names)}; expected a struct of bytes and path, as "
            "datasets.Audio stores it"
        )
    if len(audio) > 1:
        log.warning("%s: audio is taken from the column %s, not from %s", place, audio[0], ", ".join(audio[1:]))
    binary = ("binary", "large_binary", "bytes")
    return audio[0], [f.name for f in schema if f.name not in audio and not any(kind in str(f.type) for kind in binary)]


def _rows(file: Any, group: int, column: str, others: list[str]) -> list[dict[str, Any]]:
    """What a row group says of each row, as JSON has it, with the path of its audio."""
    table = file.read_row_group(group, columns=[*others, f"{column}.path"])
    rows = []
    for row in json.loads(json.dumps(table.to_pylist(), default=str)):
        audio = row.pop(column, None) or {}
        rows.append({**row, **({"path": audio["path"]} if audio.get("path") and "path" not in row else {})})
    return rows
