"""Shards on disk, written and read: the tar of tokens, its cuts, its two indexes, and the receipt of a whole shard.

The bytes are a pure function of the cuts, their tokens and the token rate; they depend on no clock, user or machine.
Each file appears by rename after a sync, the receipt last, so a crash leaves a complete shard or none.

Whole shards are read here, in order: `read_pairs` trusts nothing but the tar, `read_codes` is eight times faster and
trusts the index. Single cuts are read by `pipelines.dataset`, from memory-mapped shards.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from pipelines.format.layout import INDEX_DTYPE, Layout
from pipelines.format.ledger import Outcome, Quarantined, Receipt, write_receipt
from pipelines.format.packed import pack
from pipelines.sources.cuts import PlannedCut
from pipelines.storage.folders import Folder
from pipelines.storage.stable_bytes import gunzipped, gzip_bytes, json_lines, stored_file


@dataclass(frozen=True)
class MadeShard:
    """A shard that is still to be stored.

    Attributes:
        files: the content of each file.
    """

    files: Mapping[Folder, bytes]
    receipt: Receipt


def make_shard(
    layout: Layout,
    shard: int,
    cuts: Sequence[PlannedCut],
    outcomes: Sequence[Outcome],
    token_rate: float,
    pack_bits: int | None = None,
) -> MadeShard:
    """Every file of one shard; with `pack_bits`, the bits of a code, a packed file too. Nothing is written."""
    good = [(planned, codes) for planned, codes in zip(cuts, outcomes, strict=True) if isinstance(codes, np.ndarray)]
    files = _shard_files(layout, shard, good, token_rate) if good else {}
    if good and pack_bits is not None:
        files[layout.packed_codes(shard)] = pack([(planned.member, codes) for planned, codes in good], pack_bits)
    receipt = Receipt(
        shard=shard,
        files={layout.name(path): stored_file(data) for path, data in files.items()},
        cuts=len(good),
        tokens=sum(len(codes) for _, codes in good),
        seconds=round(sum(planned.seconds for planned, _ in good), 6),
        quarantined=tuple(outcome for outcome in outcomes if isinstance(outcome, Quarantined)),
    )
    return MadeShard(files, receipt)


def store_shard(layout: Layout, made: MadeShard) -> Receipt:
    """Write the files of a shard to disk or upload them, and its receipt when all of them are there."""
    for stale in set(layout.shard_files(made.receipt.shard)) - set(made.files):  # of an attempt that could read a cut
        stale.unlink(missing_ok=True)
    for path, data in made.files.items():
        layout.write(path, data)
    write_receipt(layout, made.receipt)
    return made.receipt


def shar_cut(planned: PlannedCut, tokens: int, token_rate: float) -> dict[str, Any]:
    """The cut as `cuts.*.jsonl.gz` has it. Its id is the member name; its original id is in `custom.cut_id`, and
    `custom.codes` is a placeholder for its tokens. Everything else is kept. A mix becomes a cut without recording, with
    its tracks in `custom`."""
    cut = dict(planned.cut)
    custom = dict(cut.get("custom") or {})
    if cut["type"] == "MixedCut":
        custom["tracks"] = cut["tracks"]
        cut = {
            "id": cut["id"],
            "start": 0.0,
            "duration": planned.seconds,
            "channel": 0,
            "supervisions": _mixed_supervisions(cut),
            "type": "MonoCut",
        }
    cut["id"] = planned.member
    cut["custom"] = {**custom, "cut_id": planned.id, "codes": codes_manifest(planned, tokens, token_rate)}
    return cut


def codes_manifest(planned: PlannedCut, tokens: int, token_rate: float) -> dict[str, Any]:
    """Lhotse's TemporalArray placeholder for the codes of a cut; the JSON member of the tar.

    `start` is the cut's, because `load_codes` slices from there. `frame_shift` is 1 / token_rate, or where the audio
    fills less than half of the last token the nearest smaller step with which Lhotse, which rounds duration /
    frame_shift, does not leave that token out. Both are always floats: `datasets` takes the schema from the first
    samples.
    """
    lhotse_tokens = math.floor(round(planned.seconds * token_rate, 8) + 0.5)
    start = 0.0 if planned.cut["type"] == "MixedCut" else float(planned.cut.get("start") or 0.0)
    return {
        "array": {"storage_type": "shar", "storage_path": "", "storage_key": "", "shape": [tokens]},
        "temporal_dim": 0,
        "frame_shift": 1 / token_rate if lhotse_tokens >= tokens else planned.seconds / (tokens - 0.5),
        "start": start,
    }


class Pair(NamedTuple):
    """A cut as the tar of codes holds it.

    Attributes:
        member: its member id.
        codes: uint16 [T].
        manifest: Lhotse's TemporalArray placeholder.
        begin: byte in the tar where the raw codes begin.
    """

    member: str
    codes: np.ndarray
    manifest: dict[str, Any]
    begin: int


def read_pairs(path: Folder) -> Iterator[Pair]:
    """Every pair of a codes tar, in order. Raises ValueError where the members do not come in pairs."""
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        members = tar.getmembers()
        names = [member.name for member in members]
        for data, meta in zip(members[::2], members[1::2], strict=True):
            stem = data.name.removesuffix(".npy")
            if (data.name, meta.name) != (f"{stem}.npy", f"{stem}.json"):
                raise ValueError(f"members {names.index(data.name)} and on are {data.name}, {meta.name}: not a pair")
            file.seek(data.offset_data)
            codes = _load_npy(io.BytesIO(file.read(data.size)))
            file.seek(meta.offset_data)
            yield Pair(stem, codes, json.loads(file.read(meta.size)), data.offset_data + data.size - codes.nbytes)


def read_cuts(path: Folder) -> list[dict[str, Any]]:
    """The lines of a `cuts.*.jsonl.gz`. Raises OSError, EOFError, ValueError or zlib.error where it is damaged."""
    return [json.loads(line) for line in gunzipped(path.read_bytes()).splitlines()]


def _load_npy(file: BinaryIO) -> np.ndarray:
    """An array of NumPy's format. Raises ValueError or EOFError where it is damaged."""
    try:
        return np.load(file, allow_pickle=False)
    except (tokenize.TokenError, SyntaxError, OverflowError, MemoryError) as error:  # of the text of its header
        raise ValueError(f"its NumPy header is damaged ({error})") from error


def read_index(layout: Layout, shard: int) -> np.ndarray:
    """`INDEX_DTYPE` [N] of a shard, as far as the file is right. Raises OSError, EOFError or ValueError."""
    with layout.codes_index(shard).open("rb") as file:
        return _load_npy(file)


def read_codes(layout: Layout, shard: int) -> list[np.ndarray]:
    """The codes of every cut, uint16 [T], by the index. Raises OSError, EOFError, TypeError or ValueError."""
    tar, rows = layout.codes_tar(shard).read_bytes(), read_index(layout, shard)
    return [np.frombuffer(tar, "<u2", int(tokens), int(offset)) for offset, tokens in rows.tolist()]


def stored_cuts(layout: Layout, shard: int) -> Iterator[tuple[PlannedCut, np.ndarray]]:
    """Each cut of a shard as it was planned, with its codes, uint16 [T]; `make_shard` makes the same bytes of them.

    A mix comes back as the cut without recording that it became.
    """
    cuts = read_cuts(layout.cuts_file(shard))
    for cut, pair in zip(cuts, read_pairs(layout.codes_tar(shard)), strict=True):
        custom = {key: value for key, value in cut["custom"].items() if key not in ("cut_id", "codes")}
        yield PlannedCut({**cut, "id": cut["custom"]["cut_id"], "custom": custom}, member=pair.member), pair.codes


def _shard_files(
    layout: Layout, shard: int, good: list[tuple[PlannedCut, np.ndarray]], token_rate: float
) -> dict[Folder, bytes]:
    tar, rows, pairs = _tar(good, token_rate)
    lines = json_lines(shar_cut(planned, len(codes), token_rate) for planned, codes in good)
    return {
        layout.cuts_file(shard): gzip_bytes(lines),
        layout.codes_tar(shard): tar,
        layout.codes_index(shard): _npy(rows),
        layout.lhotse_index(shard): np.array([*pairs, len(tar)], "<u8").tobytes(),
    }


def _tar(good: list[tuple[PlannedCut, np.ndarray]], token_rate: float) -> tuple[bytes, np.ndarray, list[int]]:
    """The tar, its `INDEX_DTYPE` rows, and the offset of each pair."""
    buffer, rows, pairs = io.BytesIO(), np.zeros(len(good), INDEX_DTYPE), []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row, (planned, codes) in enumerate(good):
            data = _npy(codes.astype("<u2"))
            manifest = json.dumps(codes_manifest(planned, len(codes), token_rate)).encode("ascii")
            pairs.append(buffer.tell())
            tar.addfile(_member(f"{planned.member}.npy", data), io.BytesIO(data))
            rows[row] = (pairs[-1] + tarfile.BLOCKSIZE + len(data) - codes.nbytes, len(codes))
            tar.addfile(_member(f"{planned.member}.json", manifest), io.BytesIO(manifest))
            tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every member otherwise
    return buffer.getvalue(), rows, pairs


def _member(name: str, data: bytes) -> tarfile.TarInfo:
    """A header with fixed owner, mode and time: TarInfo's defaults are 0, 0644 and 0."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _mixed_supervisions(mix: dict[str, Any]) -> list[dict[str, Any]]:
    """Supervisions of all tracks of a mix, moved to where their track begins, and their alignments with them: in Lhotse
    those count from the start of the track's recording, which the cut in the shard no longer has."""
    moved = []
    for track in mix["tracks"]:
        offset = track.get("offset", 0.0)
        into_recording = offset - track["cut"].get("start", 0.0)
        for supervision in track["cut"].get("supervisions") or []:
            supervision = {**supervision, "start": supervision.get("start", 0.0) + offset}
            if alignment := supervision.get("alignment"):
                supervision["alignment"] = {
                    kind: [_item_moved(item, into_recording) for item in items] for kind, items in alignment.items()
                }
            moved.append(supervision)
    return moved


def _item_moved(item: Any, seconds: float) -> list[Any]:
    """A Lhotse alignment item [symbol, start, duration, score] at another time; before Lhotse 1.8 they were objects."""
    symbol, start, *rest = item.values() if isinstance(item, dict) else item
    return [symbol, round(start + seconds, 8), *rest]
