"""The HTML page of `eval-lm --html`: figures, bar charts, and sampled continuations to listen to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.evaluation.codec_page import NOTHING_MISSING, clips
from pipelines.evaluation.evaluate import Sounds
from pipelines.pages.charts import Bar, bars
from pipelines.pages.html import Row, render_page
from slm.evaluation.evaluate import LM, share_of_unigram
from slm.evaluation.lm_table import (
    choice_rows,
    choices,
    extent,
    facts,
    likelihood_rows,
    sample_rows,
    transcript_rows,
)

TEMPLATE = Path(__file__).resolve().with_suffix(".html")
SHOWN = 6  # transcripts
NO_TEXT = "(nothing)"  # in place of an empty transcript
MEANINGS = {
    "bits per token": "mean surprisal of the tokens and the ends of cuts, each given what comes before it in its cut",
    "bits per second": "bits per token times tokens per second of speech. It compares models across codebook sizes but "
    "not across codecs: a codec that keeps more of the sound leaves more to predict",
    "token error rate": "tokens that are not the model's most likely one, given the tokens before them (teacher "
    "forcing); ends of cuts do not count",
    "wrong bits per token": "bits that differ between a token and the model's most likely one",
    "true continuation": "the first part of a recording is followed by its own second part or by that of another "
    "speaker (SALMon's construction, on tokens). The true one also fits in every other respect",
    "same speaker": "both second parts are from other recordings, one of them by the same speaker: only the speaker "
    "can decide",
    "95 % interval": "Wilson's interval for independent pairs",
    "piece, character and word error rate": "edit distance between the reference and the greedy transcript, divided by "
    "the length of the reference; characters and words ignore case and punctuation",
    "entropy": "of the distribution of tokens over all continuations",
    "repeated tokens": "tokens equal to the one before",
    "repeated 4-grams": "runs of four tokens that occurred earlier in the same continuation",
    "auto-BLEU": "words and pairs of words, as a recogniser hears them, that occur again in the same sample: geometric "
    "mean of both shares (arXiv 2102.01192)",
    "GenPPL": "perplexity of these words to a language model of text; to be read beside that of the recordings",
    "silence": "frames of 20 ms that are 40 dB below the loud frames (95th percentile) of the clip",
}


def render(result: dict[str, Any], sounds: Sequence[Sounds]) -> str:
    """The page as HTML. `result` and `sounds` are what `evaluate` returns."""
    return render_page(
        TEMPLATE,
        title=f"Language model {result['lm']} on held-out speech",
        introduction=f"{extent(result)} of codec {result['codec']}: {', '.join(result['data'])}.",
        key_figures=headlines(result),
        lm=LM,
        likelihood_chart=likelihood_chart(result),
        likelihood=likelihood_rows(result),
        facts=facts(result),
        choice_charts=[choice_chart(name, tests) for name, tests in choices(result).items()],
        choices=choice_rows(result),
        transcripts=transcript_pairs(result),
        transcript_rows=transcript_rows(result),
        samples=sample_rows(result),
        clips=clips(sounds),
        measures=MEANINGS.items(),
        missing=(result["not_measured"] or NOTHING_MISSING).items(),
        footer=f"Codec fingerprint {result['codec_fingerprint']}",
    )


def headlines(result: dict[str, Any]) -> list[Row]:
    """The key figures."""
    own = result["likelihood"][LM]
    rows = [
        Row("held-out loss", f"{own['bits_per_token']:.2f} bits per token"),
        Row("of held-out speech", f"{own['bits_per_second']:.0f} bits per second"),
        Row("parameters", f"{result['parameters'] / 1e6:.1f} M"),
    ]
    if share := share_of_unigram(result):
        rows.append(Row("of the unigram baseline's bits", f"{100 * share:.1f} %"))
    rows += [
        Row(f"{field} consistency, accuracy", f"{100 * tests['true'][LM]['accuracy']:.1f} %")
        for field, tests in result["swaps"].items()
    ]
    return rows


def likelihood_chart(result: dict[str, Any]) -> str:
    values = {system: row["bits_per_token"] for system, row in result["likelihood"].items()}
    items = [Bar(system, bits, f"{bits:.2f}", colour(system)) for system, bits in values.items()]
    return bars("Bits per token (lower is better)", items, max(values.values()))


def choice_chart(name: str, tests: dict[str, Any]) -> str:
    items = [
        Bar(system, row["accuracy"], f"{100 * row['accuracy']:.1f} %", colour(system)) for system, row in tests.items()
    ]
    return bars(name, items, 1.0)


def transcript_pairs(result: dict[str, Any]) -> list[tuple[str, str]]:
    """References and transcripts of some cuts, in turn; empty where none were made."""
    texts = result["transcripts"]["texts"][:SHOWN] if result["transcripts"] else []
    return [
        pair
        for one in texts
        for pair in (("reference", one["said"]), ("transcript", one["written"].strip() or NO_TEXT))
    ]


def colour(system: str) -> str:
    return "accent" if system == LM else ""
