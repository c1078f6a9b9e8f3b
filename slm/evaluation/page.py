"""An evaluation as one HTML file that needs nothing but itself: figures, bars, and samples to hear."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from pipelines.evaluation.evaluate import Sounds
from pipelines.evaluation.page import ASSETS, clip_html, terms_html
from pipelines.pages.charts import Bar, bars_html
from pipelines.pages.html import Row, base_css, cells_html, headlines_html
from slm.evaluation.evaluate import LM, share_of_unigram
from slm.evaluation.table import (
    choice_rows,
    choices,
    extent,
    facts,
    likelihood_rows,
    sample_rows,
    transcript_rows,
)

TEMPLATE = Path(__file__).resolve().parent / "page.html"
SHOWN = 6  # transcripts
NOTHING = "(nothing)"  # in place of a transcript without a word
MEANINGS = {
    "bits a token": "mean surprisal of codes and ends of cuts, each given what stands before it in its cut",
    "bits a second of speech": "the same times the tokens of a second; compares across codebooks, not across codecs: a "
    "codec that keeps more of the sound has more to predict",
    "token errors": "codes that are not the likeliest one given all that was recorded before them in their cut; "
    "without ends",
    "wrong bits a token": "bits of a code that the likeliest one has otherwise",
    "true continuation": "first part of a recording, then its own second part or that of another speaker (SALMon's "
    "construction, on codes); the own part also fits in all else",
    "other recording": "both second parts are from other recordings, one of the same speaker: only the speaker tells",
    "95 % of it": "Wilson's interval, for independent pairs",
    "piece, character, word errors": "least edits from what was said to the likeliest transcript (put in, left out, "
    "changed), by what was said; characters and words without case and punctuation",
    "entropy": "of how often each code occurs in all continuations together",
    "same code": "codes that are the one before",
    "4 codes again": "runs of four codes that the same continuation had before",
    "silent": "frames of 20 ms that are 40 dB below the loud ones of their clip",
}


def render(result: dict[str, Any], sounds: Sequence[Sounds]) -> str:
    """The page as HTML. `result` and `sounds` are what `evaluate` returns."""
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"Language model {result['lm']} on held-out speech"),
        css=base_css() + (ASSETS / "page.css").read_text(encoding="utf-8").strip(),
        js=(ASSETS / "page.js").read_text(encoding="utf-8").strip(),
        introduction=escape(f"{extent(result)} of codec {result['codec']}: {', '.join(result['data'])}."),
        headlines=headlines_html(headlines(result)),
        likelihood_chart=likelihood_chart(result),
        likelihood=table_html(*likelihood_rows(result)),
        facts="".join(f"<li>{escape(fact)}</li>" for fact in facts(result)),
        choice_charts="".join(choice_chart(name, tests) for name, tests in choices(result).items()),
        choices=table_html(*choice_rows(result)),
        transcripts_link='<a href="#transcripts">Transcripts</a>' if result["transcripts"] else "",
        transcripts=transcripts_html(result),
        samples=table_html(*sample_rows(result)),
        clips="".join(map(clip_html, sounds)),
        measures=terms_html(MEANINGS),
        missing=terms_html(result["not_measured"] or {"nothing": "all was measured"}),
        footer=escape(f"Codec fingerprint {result['codec_fingerprint']}"),
    )


def headlines(result: dict[str, Any]) -> list[Row]:
    """The few figures on top."""
    own = result["likelihood"][LM]
    rows = [
        Row("held-out", f"{own['bits_per_token']:.2f} bits a token"),
        Row("of speech", f"{own['bits_per_second']:.0f} bits a second"),
        Row("parameters", f"{result['parameters'] / 1e6:.1f} M"),
    ]
    if share := share_of_unigram(result):
        rows.append(Row("of the unigram's bits", f"{100 * share:.1f} %"))
    rows += [
        Row(f"{field} consistency", f"{100 * tests['true'][LM]['accuracy']:.1f} %")
        for field, tests in result["swaps"].items()
    ]
    return rows


def likelihood_chart(result: dict[str, Any]) -> str:
    values = {system: row["bits_per_token"] for system, row in result["likelihood"].items()}
    bars = [Bar(system, bits, f"{bits:.2f}", css_class(system)) for system, bits in values.items()]
    return bars_html("bits a token, less is better", bars, max(values.values()))


def choice_chart(name: str, tests: dict[str, Any]) -> str:
    bars = [
        Bar(system, row["accuracy"], f"{100 * row['accuracy']:.1f} %", css_class(system))
        for system, row in tests.items()
    ]
    return bars_html(name, bars, 1.0)


def transcripts_html(result: dict[str, Any]) -> str:
    """A section of error rates and some of the transcripts; nothing where there are none."""
    if not result["transcripts"]:
        return ""
    pairs = "".join(
        f"<dt>said</dt><dd>{escape(one['said'])}</dd>"
        f"<dt>written</dt><dd>{escape(one['written'].strip() or NOTHING)}</dd>"
        for one in result["transcripts"]["texts"][:SHOWN]
    )
    return (
        '<section id="transcripts"><h2>What it writes down</h2>'
        "<p>The likeliest piece each time, of held-out speech alone.</p>"
        f'{table_html(*transcript_rows(result))}<dl class="measures">{pairs}</dl></section>'
    )


def table_html(head: list[str], rows: list[list[str]]) -> str:
    return cells_html(head, [(row, css_class(row[0])) for row in rows]) if rows else ""


def css_class(system: str) -> str:
    return "codec" if system == LM else ""  # the style's name for what is measured
