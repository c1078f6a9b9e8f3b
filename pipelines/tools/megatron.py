"""A dataset in Megatron's indexed format: all tokens one after another in `tokens.bin`, and where each cut lies.

    tokens.idx, little-endian           bytes
      "MMIDIDX", 0, 0                   9
      version: 1                        8       uint64
      type of the ids in tokens.bin     1       4: int32, 8: uint16
      N, the number of sequences        8       uint64
      number of document bounds: N + 1  8       uint64
      ids of each sequence              4 N     int32
      its first byte in tokens.bin      8 N     int64
      the bounds: 0, 1, ... N           8 N + 8 int64

A cut is one sequence and one document. Megatron-LM, Megatron-Bridge, NeMo and what else trains with megatron-core read
the two files by their common path, OUT/tokens.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.format.description import Description
from pipelines.format.layout import Layout
from pipelines.format.shards import read_codes
from pipelines.tools.export import about, sound_shards
from tokenizer.errors import InputError

MAGIC = b"MMIDIDX\0\0"
VERSION = 1
TYPE_CODES = {np.dtype("<u2"): 8, np.dtype("<i4"): 4}
HIGHEST_ID = 2**31 - 1


@dataclass(frozen=True)
class Ids:
    """How codes become ids. The defaults are the ids of this project's language model (`slm.vocabulary`).

    Attributes:
        first_code: id of the codec's token 0.
        begin, end: ids before and after each cut; None: none.

    Raises:
        InputError: an id is negative or does not fit into 31 bits.
    """

    first_code: int = 16
    begin: int | None = 1
    end: int | None = 2

    def __post_init__(self) -> None:
        for name in ("first_code", "begin", "end"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= HIGHEST_ID:
                raise InputError(f"{name} is {value}; expected 0 to {HIGHEST_ID}")

    def size(self, codebook_size: int) -> int:
        """One more than the highest id."""
        return 1 + max(self.first_code + codebook_size - 1, self.begin or 0, self.end or 0)


def write_megatron(folder: Path, layout: Layout, description: Description, ids: Ids | None = None) -> None:
    """Write tokens.bin, tokens.idx and a README into an empty folder. Memory: one shard, and 4 bytes a cut.

    Raises:
        InputError: the source is damaged, or ids do not fit into 31 bits.
    """
    ids = ids or Ids()
    size = ids.size(description.codec.codebook_size)
    if size > HIGHEST_ID + 1:
        raise InputError(f"first_code is {ids.first_code}: the highest id would be {size - 1}, above {HIGHEST_ID}")
    kind = np.dtype("<u2") if size <= 1 << 16 else np.dtype("<i4")
    before = [] if ids.begin is None else [np.array([ids.begin], kind)]
    after = [] if ids.end is None else [np.array([ids.end], kind)]
    lengths = []
    with open(folder / "tokens.bin", "wb") as file:
        for entry in sound_shards(layout, description):
            codes = read_codes(layout, entry.shard)
            pieces = [part for cut in codes for part in (*before, cut.astype(kind) + kind.type(ids.first_code), *after)]
            file.write(np.concatenate([np.zeros(0, kind), *pieces]).astype(kind).tobytes())
            lengths.append(np.array([len(cut) for cut in codes], "<i4") + len(before) + len(after))
    (folder / "tokens.idx").write_bytes(_index(np.concatenate([np.zeros(0, "<i4"), *lengths]).astype("<i4"), kind))
    (folder / "README.md").write_text(_readme(description, ids, size), encoding="utf-8", newline="\n")


def _index(lengths: np.ndarray, kind: np.dtype) -> bytes:
    """The bytes of tokens.idx, of the ids of each sequence (int32 [N])."""
    ends = np.cumsum(lengths, dtype=np.int64)
    header = struct.pack("<9sQBQQ", MAGIC, VERSION, TYPE_CODES[kind], len(lengths), len(lengths) + 1)
    begins = (ends - lengths) * kind.itemsize
    return (
        header + lengths.tobytes() + begins.astype("<i8").tobytes() + np.arange(len(lengths) + 1, dtype="<i8").tobytes()
    )


def _readme(description: Description, ids: Ids, size: int) -> str:
    last = description.codec.codebook_size - 1
    rows = [
        (ids.begin, "before each cut"),
        (ids.end, "after each cut"),
        (f"{ids.first_code} to {ids.first_code + last}", f"token 0 to {last} of the codec"),
    ]
    table = "".join(f"| {value} | {what} |\n" for value, what in rows if value is not None)
    return f"""# Speech tokens for Megatron

{about(description)}
`tokens.bin` and `tokens.idx` are an indexed dataset; each cut is a document. `--data-path OUT/tokens` names both.
With the default ids, the folder of `focalstream export-lm` has the tokenizer: `--tokenizer-type HuggingFaceTokenizer
--tokenizer-model FOLDER`. Without one: `--tokenizer-type NullTokenizer --vocab-size {size}`.

| id | meaning |
|---|---|
{table}"""
