"""States as trees of tuples whose leaves are batch-first arrays or tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def leaves_of(state: Any) -> Iterator[Any]:
    """The arrays of a tree of tuples, always in the same order."""
    for child in state:
        if isinstance(child, tuple):
            yield from leaves_of(child)
        else:
            yield child


def rebuilt(state: Any, leaves: Iterator[Any]) -> Any:
    """A tree like `state` with other leaves, in the order of `leaves_of`."""
    children = [rebuilt(child, leaves) if isinstance(child, tuple) else next(leaves) for child in state]
    return type(state)(*children) if hasattr(state, "_fields") else tuple(children)


def changed(before: Any, after: Any) -> frozenset[int]:
    """The indices of the leaves that a step replaced."""
    pairs = zip(leaves_of(before), leaves_of(after), strict=True)
    return frozenset(i for i, (old, new) in enumerate(pairs) if old is not new)
