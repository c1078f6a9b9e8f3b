"""Bit-packed tokens: many cuts in one file, with random access.

    packed/codes.000000.bits       (all numbers little-endian)
      8 bytes                      b"FSBITS01"
      uint32                       bytes of the header
      header                       JSON: {"bits": 12, "cuts": N, "tokens": ..., "ids_bytes": I}
      uint32 [N]                   tokens of each cut
      I bytes                      zlib of the N member ids, one a line
      the codes                    each cut begins at a byte; its codes lie one after the other, `bits` bits each, most
                                   significant bit first; the last byte is filled with zeros

A cut of 500 codes of 12 bits takes 750 bytes, and about 10 for its length and its id. Everything else about a cut is in
the shard's `cuts.*.jsonl.gz`, under the same member id.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from tokenizer.errors import InputError

MAGIC = b"FSBITS01"
CODE_BITS = 16  # of the widest code
WORD = 4  # bytes; every code fits into the word that starts at its first byte


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
    (codes,) = unpack_cuts([data.data], np.array([tokens]), bits)
    return np.frombuffer(codes, "<u2").astype(np.uint16)


def unpack_cuts(pieces: Sequence[memoryview], lengths: np.ndarray, bits: int) -> list[memoryview]:
    """The codes of many cuts at once, the i-th as the bytes of `lengths[i]` little-endian uint16.

    Args:
        pieces: of each cut `group_bytes` bytes from where its codes begin, or fewer where the file ends.
        lengths: int64 [n], tokens of each cut.
        bits: of a code.
    """
    codes, size = group(bits)
    wanted = group_bytes(lengths, bits)
    joined = b"".join([*pieces, bytes(WORD)])
    if len(joined) != int(wanted.sum()) + WORD:
        whole = (bytes(piece).ljust(count, b"\0") for piece, count in zip(pieces, wanted.tolist(), strict=True))
        joined = b"".join([*whole, bytes(WORD)])
    unpacked = _unpack_groups(joined, bits).data.cast("B")
    ends = 2 * codes * np.cumsum(wanted // size)
    begins = ends - 2 * codes * (wanted // size)
    return [unpacked[begin:end] for begin, end in zip(begins.tolist(), (begins + 2 * lengths).tolist(), strict=True)]


def group(bits: int) -> tuple[int, int]:
    """(codes, bytes) of the fewest codes that fill whole bytes: at 12 bits 2 codes in 3 bytes."""
    shared = math.gcd(bits, 8)
    return 8 // shared, bits // shared


def group_bytes(lengths: np.ndarray, bits: int) -> np.ndarray:
    """Bytes of the whole groups that hold so many codes; the last ones may belong to the next cut."""
    codes, size = group(bits)
    return -(-lengths // codes) * size


def _unpack_groups(data: bytes, bits: int) -> np.ndarray:
    """Little-endian uint16 [G, codes] of G whole groups and `WORD` bytes more: the i-th codes of all groups at once,
    each out of the word that begins at its first byte."""
    codes, size = group(bits)
    groups = (len(data) - WORD) // size
    unpacked = np.empty((groups, codes), "<u2")
    for column in range(codes):
        first, skipped = divmod(column * bits, 8)
        words = np.ndarray(groups, ">u4", data, first, (size,)).astype(np.uint32)
        words >>= 8 * WORD - skipped - bits
        np.bitwise_and(words, (1 << bits) - 1, out=unpacked[:, column], casting="unsafe")
    return unpacked


class PackedShard:
    """Random access to one packed file, memory-mapped.

    Attributes:
        bits: of a code.
        lengths: int64 [N], tokens of each cut.
        offsets: int64 [N + 1], the byte where the codes of each cut begin; then the size of the file.
        data: uint8, the file.

    Raises:
        InputError: the file is not of this format, or is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self.data = np.asarray(np.memmap(path, np.uint8, "r")) if Path(path).stat().st_size else np.zeros(0, np.uint8)
        begin = len(MAGIC) + 4
        if self.data[: len(MAGIC)].tobytes() != MAGIC or len(self.data) < begin:
            raise InputError(f"{path}: expected a file of packed codes, which begins with {MAGIC.decode()}")
        try:
            end = begin + struct.unpack("<I", self.data[len(MAGIC) : begin].tobytes())[0]
            header = json.loads(self.data[begin:end].tobytes())
            self.bits, count = int(header["bits"]), int(header["cuts"])
            ids = end + 4 * count
            self.lengths: np.ndarray = np.frombuffer(self.data[end:ids].tobytes(), "<u4", count).astype(np.int64)
            codes = ids + int(header["ids_bytes"])
            self._packed_ids = self.data[ids:codes]
            self.offsets: np.ndarray = codes + np.concatenate([[0], np.cumsum(-(-self.lengths * self.bits // 8))])
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError, MemoryError) as error:
            raise InputError(f"{path}: damaged ({error}); restore it with `focalstream repair`") from error
        if self.offsets[-1] != len(self.data) or not 1 <= self.bits <= CODE_BITS:
            raise InputError(
                f"{path}: {len(self.data)} bytes, but its header makes {self.offsets[-1]} with codes of {self.bits} "
                "bits; restore it with `focalstream repair`"
            )

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def ids(self) -> list[str]:
        """Member id of each cut. Raises InputError."""
        try:
            text = zlib.decompress(self._packed_ids.tobytes()).decode("ascii")
        except (zlib.error, ValueError) as error:
            raise InputError(f"{self._path}: damaged ids ({error}); restore it with `focalstream repair`") from error
        ids = text.split("\n") if len(self) else []
        if len(ids) != len(self):
            raise InputError(f"{self._path}: {len(ids)} ids of {len(self)} cuts; restore it with `focalstream repair`")
        return ids

    def codes(self, i: int) -> np.ndarray:
        """The tokens of cut `i`: uint16 [T]."""
        if not 0 <= i < len(self):
            raise IndexError(f"cut {i} of a shard of {len(self)} cuts")
        return unpack_codes(self.data[self.offsets[i] : self.offsets[i + 1]], self.bits, int(self.lengths[i]))
