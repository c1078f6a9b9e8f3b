"""Gzip that unfolds to absurdly much is refused before it takes memory."""

from __future__ import annotations

import gzip
import json

import pytest

from pipelines.storage.stable_bytes import gunzipped, gzip_bytes


def test_gzip_that_unfolds_without_end_is_refused() -> None:
    bomb = gzip.compress(bytes(300 << 20), 9)
    assert len(bomb) < 1 << 19
    with pytest.raises(ValueError, match="unfold to more than"):
        gunzipped(bomb)


def test_repetitive_lines_unfold() -> None:
    lines = "".join(
        json.dumps({"id": f"cut-{n}", "text": "the same words " * 20}) + "\n" for n in range(20_000)
    ).encode()
    assert gunzipped(gzip_bytes(lines)) == lines
