"""Names of tar members: cut ids escaped so that Lhotse, webdataset and Hugging Face `datasets` read them the same way.

Lhotse takes the file stem as the id, webdataset cuts at the first dot, `datasets` skips names that begin with `__` or
a dot, and a USTAR header holds 100 bytes. So a member id uses only ASCII letters, digits, `_`, `-`, `%` and `~`:

    speaker/42.take 1      ->  speaker%2F42%2Etake%201      percent-encoded, as in a URL
    (the third such cut)   ->  speaker%2F42%2Etake%201~3    `~` never comes from an id: it is escaped itself
    a very long id ...     ->  a%20very%20long~h5f3a...     its beginning and 128 bits of its sha256

Ids made of letters, digits, `_` and `-` stay as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from urllib.parse import quote, unquote

import numpy as np

MAX_MEMBER_ID = 90  # bytes; with ".json" below the 100 of a USTAR name, so no extended headers are ever needed
DIGEST_DIGITS = 32
OCCURRENCE_DIGITS = 8  # room kept for "~12345678" after a shortened id
RECENT = 65_536  # hashes held as Python integers before they become a sorted array


def member_id(cut_id: str, occurrence: int = 1) -> str:
    """The tar member name (without extension) of a cut.

    Args:
        cut_id: any non-empty text.
        occurrence: 1 for the first cut of this id, 2 for the second, and so on, so that duplicates get different names.
    """
    assert cut_id and occurrence >= 1
    escaped = quote(cut_id, safe="", errors="surrogatepass").replace(".", "%2E").replace("~", "%7E")
    if escaped.startswith("__"):
        escaped = "%5F" + escaped[1:]
    suffix = f"~{occurrence}" if occurrence > 1 else ""
    if len(escaped) + len(suffix) > MAX_MEMBER_ID:
        digest = hashlib.sha256(cut_id.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST_DIGITS]
        head = escaped[: MAX_MEMBER_ID - DIGEST_DIGITS - 2 - OCCURRENCE_DIGITS - 1]
        cut_escape = head.rfind("%", len(head) - 2)  # do not leave half an escape at the end
        escaped = f"{head[:cut_escape] if cut_escape >= 0 else head}~h{digest}"
    return escaped + suffix


def original_id(member: str) -> str | None:
    """The cut id that a member name stands for; None for a shortened one (the cut's `custom` field has the id)."""
    escaped, _, rest = member.partition("~")
    return None if rest.startswith("h") else unquote(escaped, errors="surrogatepass")


class SeenIds:
    """Occurrence numbers of ids, in one pass over millions of them, at about 8 bytes per id.

    Ids are kept as 64-bit hashes in sorted runs of doubling size; only repeated ones are counted by name. Two different
    ids with the same hash (one chance in 30,000 for 35 million ids) only cause a needless suffix.
    """

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._runs: list[np.ndarray] = []  # sorted, each at most as large as the one before
        self._repeats: dict[str, int] = {}

    def occurrence(self, text: str) -> int:
        """1 for the first occurrence of `text`, 2 for the second, and so on."""
        return self.occurrences([text])[0]

    def occurrences(self, texts: Sequence[str]) -> list[int]:
        """The same for many, one after another, which takes less time for each."""
        keys = np.fromiter((_key(text) for text in texts), np.uint64, len(texts))
        known = np.zeros(len(keys), bool)
        for run in self._runs:
            known |= run[np.minimum(np.searchsorted(run, keys), len(run) - 1)] == keys
        found = []
        for text, key, is_known in zip(texts, keys.tolist(), known.tolist(), strict=True):
            if is_known or key in self._recent:
                self._repeats[text] = self._repeats.get(text, 1) + 1
                found.append(self._repeats[text])
            else:
                self._recent.add(key)
                found.append(1)
        if len(self._recent) >= RECENT:
            self._settle()
        return found

    @property
    def duplicates(self) -> int:
        """Occurrences of ids after their first, in total."""
        return sum(count - 1 for count in self._repeats.values())

    def _settle(self) -> None:
        run = np.sort(np.fromiter(self._recent, np.uint64, len(self._recent)))
        self._recent.clear()
        while self._runs and len(self._runs[-1]) <= len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]))
        self._runs.append(run)


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
