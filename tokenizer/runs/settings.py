"""A run's settings compared with those that it began with."""

from __future__ import annotations

from typing import Any


def differences(stored: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Dotted names of the values of `given` that are not those of `stored`; a name that `stored` lacks is None there.

    Args:
        stored, given: sections by name, each a mapping of settings or a single value.
    """
    names: list[str] = []
    for section, values in given.items():
        theirs = stored.get(section)
        if not isinstance(values, dict):
            names += [section] if theirs != values else []
            continue
        known = theirs if isinstance(theirs, dict) else {}
        names += [f"{section}.{key}" for key, value in values.items() if known.get(key) != value]
    return names
