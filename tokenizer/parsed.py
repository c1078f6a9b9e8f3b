"""Parsed JSON or YAML to frozen dataclasses; errors name the key."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import reprlib
from pathlib import Path
from typing import Any, TypeVar

from tokenizer.errors import InputError

Config = TypeVar("Config")

# Numbers as YAML 1.2 has them; PyYAML follows 1.1, to which 1e-5 and 5e5 are words.
FLOAT = re.compile(
    r"[-+]?(\.[0-9_]+|[0-9][0-9_]*\.[0-9_]*)([eE][-+]?[0-9]+)?$|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"
    r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)
WHOLE = re.compile(r"[-+]?[0-9]+[eE]\+?[0-9]{1,3}$")  # 5e5, for settings that count


def read_yaml(text: str) -> Any:
    """YAML text to plain values; 1e-5 and 5e5 are numbers.

    Raises:
        InputError: in one line, with the line of the text: it is not YAML, or a key is there twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def number(loader: Any, node: Any) -> Any:
        word = node.value.replace("_", "")
        return (
            int(float(word)) if WHOLE.match(word) else float(word.lower().replace(".inf", "inf").replace(".nan", "nan"))
        )

    def mapping(loader: Any, node: Any) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise InputError(f"line {key.start_mark.line + 1}: the key {key.value!r} is there twice; remove one")
            seen.add(key.value if isinstance(key.value, str) else id(key))
        yield from yaml.SafeLoader.construct_yaml_map(loader, node)

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))
    Loader.add_constructor("tag:yaml.org,2002:float", number)
    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, OverflowError) as error:
        raise InputError(f"not a YAML file ({' '.join(str(error).split())})") from None
    except RecursionError:
        raise InputError("not a YAML file of settings (nested too deeply)") from None


def read_yaml_file(path: Path) -> Any:
    """`read_yaml` of a file. Raises InputError, naming the file, and FileNotFoundError."""
    try:
        return read_yaml(path.read_text(encoding="utf-8"))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a YAML file ({error})") from None


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
            with contextlib.suppress(OverflowError):  # too large for a float, so it does not fit
                value = float(value)
        if not _fits(value, kind):
            raise InputError(f"{section}: {key} is {shown(value)}, expected {kind}")
        values[key] = value
    for name, field in fields.items():
        required = field.init and field.default is field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise InputError(f"{section}: the key {name!r} is missing; expected {field.type}")
    return cls(**values)


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
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"{option} {pair}: expected KEY=VALUE, such as {example}")
        try:
            values[key] = read_yaml(value)
        except InputError:
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
