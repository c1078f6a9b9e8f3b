"""The settings that a run was started with, compared with those it is to be continued with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Difference(NamedTuple):
    """A setting whose two values differ; None stands for a setting that is not given.

    Attributes:
        name: dotted, such as "train.steps".
    """

    name: str
    stored: Any
    wanted: Any

    def __str__(self) -> str:
        return self.sentence()

    def sentence(self, names: Mapping[str, str] | None = None) -> str:
        """ "--shard-cuts was 5, now not given"; `names` says what users call a setting."""
        return f"{(names or {}).get(self.name, self.name)} was {_text(self.stored)}, now {_text(self.wanted)}"


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Difference]:
    """Every setting in which two nested mappings differ, in their order.

    Both are compared as JSON has them, so a tuple equals the list that it was stored as. A setting that is None equals
    one that is missing.
    """
    before, now = dict(_flat(_as_json(stored))), dict(_flat(_as_json(wanted)))
    names = dict.fromkeys([*before, *now])
    return [Difference(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)]


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(settings))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _text(value: Any) -> str:
    return "not given" if value is None else str(value)
