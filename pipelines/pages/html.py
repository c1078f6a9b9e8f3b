"""Renders the HTML pages: each is one file that loads nothing else.

A page is a Jinja template beside its module. It extends `base.html`, which holds the head, the style, the navigation
and the footer. Jinja escapes all text, so HTML is written in templates only.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Row:
    """A labelled value: one line of a table, or one of the key figures on top of a page."""

    label: str
    value: str
    note: str = ""


def base_css() -> str:
    """The style of every page, light and dark."""
    return (FOLDER / "base.css").read_text(encoding="utf-8")


def render_page(template: Path, **values: object) -> str:
    """Fill in the template of a page.

    Args:
        template: a file that extends `base.html`. What it includes is looked up beside it, then in this folder.
        values: the names the template uses; `jinja2.UndefinedError` is raised if one is missing.
    """
    return environment(template.parent).get_template(template.name).render(values)


def render_macro(file: str, macro: str, **values: object) -> Markup:
    """The HTML of one macro of a template in this folder."""
    return getattr(environment(FOLDER).get_template(file).module, macro)(**values)


@cache
def environment(folder: Path) -> Environment:
    """Templates of a folder, and of this one."""
    return Environment(
        loader=FileSystemLoader([folder, FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_uri(media_type: str, data: bytes) -> str:
    """A file as an address that holds its bytes."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
