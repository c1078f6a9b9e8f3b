"""What every export of a dataset has in common: an intact source, an OUT that appears whole, `codec.json`, rows."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.format.description import Description, ShardEntry, Totals, read_intact
from pipelines.format.layout import Layout
from pipelines.format.shards import stored_cuts
from pipelines.storage.folders import Folder, RemotePath, remove_tree
from pipelines.storage.places import open_file_system
from pipelines.storage.retries import retried
from pipelines.storage.stable_bytes import json_bytes
from tokenizer.errors import InputError

Writer = Callable[[Path, Layout, Description], None]
"""Writes the files of one format into an empty folder."""


def export(source: Path, out: Folder, write: Writer) -> Totals:
    """Write the folder OUT, which appears whole or not at all; behind a URL file by file, `codec.json` at last.

    Returns:
        The totals of the dataset.

    Raises:
        InputError: OUT exists already, the source is damaged or no dataset, or what `write` raises.
    """
    layout = Layout(source)
    description = read_intact(layout)
    if out.exists():
        raise InputError(f"{out} is there already; give a new OUT")
    beside = out.parent if isinstance(out, Path) else None
    if beside is not None:
        beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=f".{out.name}.") as unfinished:
        folder = Path(unfinished, "dataset")
        folder.mkdir()
        write(folder, layout, description)
        (folder / "codec.json").write_bytes(json_bytes(description.codec.to_dict()))
        if isinstance(out, Path):
            os.replace(folder, out)
        else:
            _upload(folder, out, last="codec.json")
    return description.totals


def _upload(folder: Path, out: RemotePath, last: str) -> None:
    """Every file of a folder to the same name below a URL; what was uploaded is removed where one fails."""
    files, path = open_file_system(out.url)
    names = sorted(found.relative_to(folder).as_posix() for found in folder.rglob("*") if found.is_file())
    try:
        for name in sorted(names, key=last.__eq__):
            retried(partial(files.put_file, str(folder / name), f"{path.rstrip('/')}/{name}"))
    except BaseException as error:  # Ctrl-C too: what it left would be in the way of the next try
        with contextlib.suppress(InputError):  # the first error is the one to tell
            remove_tree(out)
        if not isinstance(error, Exception):
            raise
        raise InputError(f"{out}: cannot be written ({type(error).__name__}: {error}); give another OUT") from error


def sound_shards(layout: Layout, description: Description) -> Iterator[ShardEntry]:
    """The shards of a dataset in order. Raises InputError at the first whose files differ from `dataset.json`."""
    for entry in description.shards:
        if not entry.is_sound(layout):
            raise InputError(f"{layout.out}: shard {entry.shard} is damaged; `focalstream repair {layout.out}` first")
        yield entry


def check_split(split: str) -> None:
    """Raise InputError for a name that no split of a Hugging Face dataset can have."""
    if not split.replace("_", "").isalnum():
        raise InputError(f"the split is named {split!r}; expected letters, digits and _")


def load_pyarrow() -> Any:
    """The package pyarrow. Raises InputError where it is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise InputError("exporting needs pyarrow: pip install 'focalstream[datasets]'") from None
    return pyarrow


def shard_table(layout: Layout, shard: int) -> Any:
    """A pyarrow table with a row for each cut of a shard.

    The columns are `id`, `codes` (list of uint16), `seconds`, `speaker`, `language`, `text` (of all supervisions; null
    where there is none) and `cut`, the whole Lhotse cut as JSON.
    """
    pyarrow = load_pyarrow()
    strings = ("id", "speaker", "language", "text", "cut")
    schema = pyarrow.schema(
        [("codes", pyarrow.list_(pyarrow.uint16())), ("seconds", pyarrow.float64())]
        + [(name, pyarrow.string()) for name in strings]
    )
    rows = [_row(cut.id, cut.cut, cut.seconds, codes) for cut, codes in stored_cuts(layout, shard)]
    return pyarrow.Table.from_pylist(rows, schema)


def _row(cut_id: str, cut: dict[str, Any], seconds: float, codes: Any) -> dict[str, Any]:
    supervisions = cut.get("supervisions") or []
    texts = [supervision["text"] for supervision in supervisions if supervision.get("text")]
    return {
        "id": cut_id,
        "codes": codes,
        "seconds": seconds,
        "speaker": next((s["speaker"] for s in supervisions if s.get("speaker")), None),
        "language": next((s["language"] for s in supervisions if s.get("language")), None),
        "text": " ".join(texts) or None,
        "cut": json.dumps(cut),
    }


def about(description: Description, command: str = "export-dataset", described_in: str = "codec.json") -> str:
    """Two paragraphs for the README of a dataset: how much there is, which command wrote it, and of which codec the
    tokens are, which another file beside it describes."""
    codec, totals = description.codec, description.totals
    amount = f"{totals.cuts:,} cuts, {totals.hours:.2f} h, {totals.tokens:,} tokens"
    return f"""{amount} at {codec.token_rate:g} a second, each
below {codec.codebook_size:,}. Written by `focalstream {command}`.

Codec `{codec.name}`, fingerprint `{codec.fingerprint}` (see {described_in}): decode with no other.
"""
