"""Numbers in sentences for people."""

from __future__ import annotations


def counted(number: int, thing: str) -> str:
    """A number of things: "1 cut", "2,000 cuts"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
