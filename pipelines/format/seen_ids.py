"""Counts how often an id has come by, over millions of ids, at about 8 bytes each."""

from __future__ import annotations

import hashlib

import numpy as np

RECENT = 65_536  # hashes held as Python integers before they become a sorted array


class SeenIds:
    """Occurrence numbers of ids, in one pass.

    Ids are kept as 64-bit hashes in sorted runs of doubling size; only those that really repeat are counted by name.
    Two different ids that share a hash (one chance in 30,000 for 35 million ids) cost nothing but a needless suffix.
    """

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._runs: list[np.ndarray] = []  # sorted, each at most as large as the one before
        self._repeats: dict[str, int] = {}

    def occurrence(self, text: str) -> int:
        """1 when `text` comes by for the first time, 2 the second time ..."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        key = int.from_bytes(digest, "little")
        if key in self._recent or any(_contains(run, key) for run in self._runs):
            self._repeats[text] = self._repeats.get(text, 1) + 1
            return self._repeats[text]
        self._recent.add(key)
        if len(self._recent) >= RECENT:
            self._settle()
        return 1

    @property
    def duplicates(self) -> int:
        """How many times an id came by after its first time, in total."""
        return sum(count - 1 for count in self._repeats.values())

    def _settle(self) -> None:
        run = np.sort(np.fromiter(self._recent, np.uint64, len(self._recent)))
        self._recent.clear()
        while self._runs and len(self._runs[-1]) <= len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]))
        self._runs.append(run)


def _contains(run: np.ndarray, key: int) -> bool:
    at = int(np.searchsorted(run, np.uint64(key)))
    return at < len(run) and int(run[at]) == key
