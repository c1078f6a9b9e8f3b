"""Parsed JSON or YAML to frozen dataclasses; errors name the key."""

from __future__ import annotations

import contextlib
import dataclasses
import reprlib
from pathlib import Path
from typing import Any, TypeVar

from tokenizer.errors import InputError

Config = TypeVar("Config")


def dataclass_from_dict(cls: type[Config], raw: Any, section: str) -> Config:
    """Build a flat frozen dataclass from parsed JSON or YAML; lists become tuples.

    Args:
        cls: the dataclass.
        raw: a mapping of its field names to values.
        section: what to call it in error messages.

    Raises:
        InputError: naming `section` and the key, for unknown or missing keys and values of the wrong type.
    """
    if not isinstance(raw, dict):
        raise InputError(f"{section}: expected a mapping, found {type(raw).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(str(key) for key in set(raw) - set(fields)):
        raise InputError(f"{section}: unknown key {unknown[0]!r}; known keys are {', '.join(sorted(fields))}")
    values = {}
    for key, value in raw.items():
        kind = str(fields[key].type)
        if isinstance(value, list):
            value = tuple(value)
        if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):  # then it does not fit
                value = float(value)
        if not _fits(value, kind):
            raise InputError(f"{section}: {key} is {shown(value)}, expected {kind}")
        values[key] = value
    try:
        return cls(**values)
    except TypeError as error:
        raise InputError(f"{section}: {str(error).split('__init__() ')[-1]}") from None


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises OSError, and InputError for what is not YAML or nested too deeply."""
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from None
    except RecursionError:
        raise InputError(f"{path}: not a YAML file of settings (nested too deeply)") from None


def shown(value: Any) -> str:
    """A parsed value in a message: short, also where a few lines of YAML make billions of entries by reference."""
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxstring, brief.maxother = 2, 80, 80
    return brief.repr(value)


def values_of_pairs(pairs: list[str], option: str, example: str) -> dict[str, Any]:
    """["heads=4", "tied_embeddings=false"] to values, as YAML reads them.

    Args:
        option: of the command line, which gave the pairs; for error messages.
        example: of a pair, likewise.

    Raises:
        InputError: a pair without "=", or whose value is not YAML.
    """
    import yaml

    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"{option} {pair}: expected KEY=VALUE, such as {example}")
        try:
            values[key] = yaml.safe_load(value)
        except (yaml.YAMLError, RecursionError):
            raise InputError(
                f"{option} {pair}: {value!r} is not a YAML value; expected KEY=VALUE, such as {example}"
            ) from None
    return values


def _fits(value: Any, kind: str) -> bool:
    """Whether a parsed value has the annotated type. Annotations are strings here (postponed evaluation)."""
    for option in (part.strip() for part in kind.split("|")):
        if option == "None" and value is None:
            return True
        if option == "bool" and isinstance(value, bool):
            return True
        if option == "int" and isinstance(value, int) and not isinstance(value, bool):
            return True
        if option == "float" and isinstance(value, float):
            return True
        if option == "str" and isinstance(value, str):
            return True
        if option.startswith("tuple[") and isinstance(value, tuple):
            item = option[len("tuple[") :].split(",")[0].rstrip("]")
            return all(_fits(entry, item) for entry in value)
    return False
