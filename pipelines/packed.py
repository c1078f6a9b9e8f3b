"""The compact form of codes: many cuts bit by bit in one file, with random access.

    packed/codes.000000.bits       (all numbers little-endian)
      8 bytes                      b"FSBITS01"
      uint32                       bytes of the header
      header                       JSON: {"bits": 12, "cuts": N, "tokens": ..., "ids_bytes": I}
      uint32 [N]                   tokens of each cut
      I bytes                      zlib of the N member ids, one a line
      the codes                    each cut begins at a byte; its codes lie one after the other, `bits` bits each, most
                                   significant bit first; the last byte is filled with zeros

A cut of 500 codes of 12 bits takes 750 bytes and about 10 for its length and its id. The rest of what is known of a cut
stays in the shard's `cuts.*.jsonl.gz`, which names it by the same member id.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tokenizer.errors import InputError

MAGIC = b"FSBITS01"
CODE_BITS = 16  # of the widest code


def pack(cuts: Sequence[tuple[str, np.ndarray]], bits: int) -> bytes:
    """The file of a shard.

    Args:
        cuts: (member id, codes uint16 [T]) of each.
        bits: 1 to 16; every code is below 2 ** bits.
    """
    ids = zlib.compress("\n".join(member for member, _ in cuts).encode("ascii"), 9)
    lengths = np.array([len(codes) for _, codes in cuts], "<u4")
    described = {"bits": bits, "cuts": len(cuts), "tokens": int(lengths.sum()), "ids_bytes": len(ids)}
    header = json.dumps(described).encode("ascii")
    parts = [MAGIC, struct.pack("<I", len(header)), header, lengths.tobytes(), ids]
    return b"".join([*parts, *(pack_codes(codes, bits) for _, codes in cuts)])


def pack_codes(codes: np.ndarray, bits: int) -> bytes:
    """uint16 [T] as ceil(T * bits / 8) bytes."""
    assert 1 <= bits <= CODE_BITS and (not codes.size or int(codes.max()) >> bits == 0)
    spread = np.unpackbits(codes.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)
    return np.packbits(spread[:, CODE_BITS - bits :]).tobytes()


def unpack_codes(data: np.ndarray, bits: int, tokens: int) -> np.ndarray:
    """uint16 [tokens] of the uint8 array that `pack_codes` made."""
    spread = np.zeros((tokens, CODE_BITS), np.uint8)
    spread[:, CODE_BITS - bits :] = np.unpackbits(data, count=tokens * bits).reshape(tokens, bits)
    return np.packbits(spread, axis=1).view(">u2").reshape(tokens).astype(np.uint16)


class PackedShard:
    """Random access to one packed file, memory-mapped.

    Attributes:
        lengths: int64 [N], tokens of each cut.
        ids: member id of each cut.

    Raises:
        InputError: the file is none of these, or is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        data = np.memmap(path, np.uint8, "r") if Path(path).stat().st_size else np.zeros(0, np.uint8)
        begin = len(MAGIC) + 4
        if data[: len(MAGIC)].tobytes() != MAGIC or len(data) < begin:
            raise InputError(f"{path}: expected a file of packed codes, which begins with {MAGIC.decode()}")
        try:
            end = begin + struct.unpack("<I", data[len(MAGIC) : begin].tobytes())[0]
            header = json.loads(data[begin:end].tobytes())
            self._bits, count = int(header["bits"]), int(header["cuts"])
            ids = end + 4 * count
            self.lengths: np.ndarray = np.frombuffer(data[end:ids].tobytes(), "<u4", count).astype(np.int64)
            codes = ids + int(header["ids_bytes"])
            self.ids = zlib.decompress(data[ids:codes].tobytes()).decode("ascii").split("\n") if count else []
            self._offsets = codes + np.concatenate([[0], np.cumsum(-(-self.lengths * self._bits // 8))])
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise InputError(f"{path}: damaged ({error}); restore it with `focalstream repair`") from error
        if self._offsets[-1] != len(data) or len(self.ids) != count or not 1 <= self._bits <= CODE_BITS:
            raise InputError(
                f"{path}: {len(data)} bytes with {len(self.ids)} ids, but its header makes {self._offsets[-1]} with "
                f"{count}; restore it with `focalstream repair`"
            )
        self._data = data

    def __len__(self) -> int:
        return len(self.lengths)

    def codes(self, i: int) -> np.ndarray:
        """The tokens of cut `i`: uint16 [T]."""
        if not 0 <= i < len(self):
            raise IndexError(f"cut {i} of a shard of {len(self)} cuts")
        data = np.asarray(self._data[self._offsets[i] : self._offsets[i + 1]])
        return unpack_codes(data, self._bits, int(self.lengths[i]))
