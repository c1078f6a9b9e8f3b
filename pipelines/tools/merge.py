"""Several datasets of one codec as one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.bulk.plan import Sharding
from pipelines.bulk.reopen import is_sound, quarantined_by_shard
from pipelines.dataset.token_dataset import TokenDataset, read_description
from pipelines.format.layout import Layout
from pipelines.format.ledger import Quarantined
from pipelines.format.stored_shard import stored_cuts
from pipelines.sources.cuts import PlannedCut
from pipelines.tools.rewrite import DatasetWriter, refuse_nesting, rewriting
from tokenizer.errors import InputError


def merge(sources: list[Path], out: Path, sharding: Sharding) -> dict[str, Any]:
    """Write the cuts of all `sources`, in order, as one dataset.

    A cut whose id was there before keeps it, and gets another name in the tar; `totals.duplicate_ids` counts them.

    Returns:
        The content of the new `dataset.json`.

    Raises:
        InputError: a source is no finished dataset, of another codec than the first, or damaged; OUT is not free.
    """
    if len(sources) < 2:
        raise InputError(f"{len(sources)} datasets to merge; expected at least 2")
    refuse_nesting(out, sources)
    codec = TokenDataset(sources).codec  # of one codec, or an error
    descriptions = [read_description(Layout(source)) for source in sources]
    made_from = {"merged": [_origin(source, found) for source, found in zip(sources, descriptions, strict=True)]}
    layout = Layout(out.absolute())
    with rewriting(layout):
        writer = DatasetWriter(layout, codec, made_from, sharding)
        for source, description in zip(sources, descriptions, strict=True):
            copy_cuts(Layout(source), description, lambda cut: writer, lambda entry: writer)
        return writer.close()


def copy_cuts(
    source: Layout,
    description: dict[str, Any],
    writer_of_cut: Callable[[PlannedCut], DatasetWriter],
    writer_of_failure: Callable[[Quarantined], DatasetWriter],
) -> None:
    """Give every cut of a dataset, and every one in its quarantine, to the writer chosen for it.

    Raises:
        InputError: a shard or the quarantine is not as `dataset.json` says.
    """
    for entry in description["shards"]:
        if not is_sound(source, entry):
            raise InputError(
                f"{source.out}: shard {entry['shard']} is damaged; `focalstream repair {source.out}` first"
            )
        for cut, codes in stored_cuts(source, entry["shard"]):
            writer_of_cut(cut).add(cut, codes)
    failures = [failed for found in quarantined_by_shard(source).values() for failed in found]
    if len(failures) != description["totals"]["quarantined"]:
        raise InputError(f"{source.quarantine} is damaged; `focalstream repair {source.out}` first")
    for failed in failures:
        writer_of_failure(failed).add_quarantined(failed)


def _origin(source: Path, description: dict[str, Any]) -> dict[str, Any]:
    return {"path": str(source.absolute()), "checksum": description["checksum"]}
