"""What our self-contained HTML pages have in common: the base style, figures on top, embedded files."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

BASE_CSS = Path(__file__).resolve().parent / "base.css"
SMALLER = 0.5  # of libsndfile's range from the largest MP3 file (0) to the smallest (1)


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    label: str
    value: str
    note: str = ""


def base_css() -> str:
    """The style of every page, light and dark."""
    return BASE_CSS.read_text(encoding="utf-8")


def headlines_html(rows: Sequence[Row]) -> str:
    """The few figures on top; a value's unit, after its first space, is set smaller."""
    cells = []
    for row in rows:
        number, _, unit = row.value.partition(" ")
        value = escape(number) + (f" <small>{escape(unit)}</small>" if unit else "")
        cells.append(f"<div><dt>{escape(row.label)}</dt><dd>{value}</dd></div>")
    return f'<dl class="headlines">{"".join(cells)}</dl>'


def cells_html(heads: Sequence[str], rows: Sequence[tuple[Sequence[str], str]]) -> str:
    """A table that scrolls where it is too wide; (cells, CSS class) of each row, the first cell being its head."""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in heads)
    body = "".join(
        f'<tr class="{css_class}"><th scope="row">{escape(cells[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells[1:])
        + "</tr>"
        for cells, css_class in rows
    )
    return f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def data_uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def mp3_bytes(wave: np.ndarray, sample_rate: int) -> bytes:
    """float32 [S] as MP3, which every browser plays: an eighth of a WAV file."""
    import soundfile

    buffer = io.BytesIO()
    wave = np.clip(wave, -1, 1)
    soundfile.write(buffer, wave, sample_rate, format="MP3", compression_level=SMALLER)
    return buffer.getvalue()
