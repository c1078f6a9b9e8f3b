"""A dataset's figures as one HTML file that needs nothing but itself: plots, and samples to hear."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from pipelines.bulk.progress import Speed
from pipelines.format.description import CodecEntry, Description
from pipelines.pages.charts import Bar, bars_html, columns_html, curve_html
from pipelines.pages.html import Row, base_css, data_uri, headlines_html, mp3_bytes
from pipelines.report.figures import DURATION_STEP, LONGEST_RUN, NOT_SAID, Figures
from pipelines.report.samples import LONGEST_SECONDS, Sample
from pipelines.storage.stable_bytes import bytes_text as size
from tokenizer.words import counted

ASSETS = Path(__file__).resolve().parent
MOST_BARS = 12
MOST_COLUMNS = 40
CURVE_POINTS = 200


def render(name: str, figures: Figures, samples: Sequence[Sample], why_silent: str, speed: Speed | None) -> str:
    """The page as HTML.

    Args:
        name: of the dataset.
        why_silent: what is said where there are no samples.
        speed: of the runs that made it, where it is known.
    """
    description = figures.description
    return Template((ASSETS / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"Dataset {name}"),
        css=base_css() + (ASSETS / "page.css").read_text(encoding="utf-8").strip(),
        introduction=escape(introduction(figures)),
        headlines=headlines_html(headlines(figures)),
        samples_text=escape(samples_text(samples, why_silent)),
        samples="".join(map(sample_html, samples)),
        cuts_text=escape(cuts_text(figures)),
        cut_charts=cut_charts(figures),
        codes_text=escape(codes_text(figures)),
        code_charts=code_charts(figures),
        size_text=escape(size_text(figures)),
        size_charts=size_charts(figures),
        quarantine_text=escape(quarantine_text(figures)),
        quarantine_charts=quarantine_charts(figures),
        examples=examples_html(figures),
        speed_text=escape(speed_text(speed)),
        speed_charts=speed_charts(speed),
        identity=terms_html(identity(description)),
        footer=escape(f"Codec fingerprint {description.codec.fingerprint}"),
    )


# ---- words ------------------------------------------------------------------------------------------------------


def introduction(figures: Figures) -> str:
    description, shards = figures.description, len(figures.description.shards)
    codec, totals = description.codec, description.totals
    read = "all of them" if figures.shards_read == shards else f"{figures.shards_read:,} of them, spread evenly"
    return (
        f"{counted(totals.cuts, 'cut')} in {counted(shards, 'shard')}, tokenized by codec {codec.name}: "
        f"{codec.bits_per_token} bits at {codec.token_rate:g} Hz, {bitrate(codec):g} bit/s. Totals and sizes are "
        f"of all shards; the other figures are of {read}."
    )


def headlines(figures: Figures) -> list[Row]:
    """The few figures on top."""
    totals, usage = figures.description.totals, figures.usage()
    rows = [
        Row("of audio", f"{totals.hours:,.2f} h"),
        Row("tokens", f"{totals.tokens:,}"),
        Row("cuts", f"{totals.cuts:,}"),
        Row("quarantined", f"{totals.quarantined:,}"),
    ]
    if figures.hours:
        rows.append(Row("an hour on disk", size(figures.sizes.total() / figures.hours)))
    if usage:
        rows.append(Row("codes used", f"{100 * usage['used']:.1f} %"))
        rows.append(Row("entropy", f"{usage['entropy_bits']:.2f} of {figures.description.codec.bits_per_token} bits"))
    return rows


def samples_text(samples: Sequence[Sample], why_silent: str) -> str:
    if not samples:
        return why_silent
    return (
        f"{counted(len(samples), 'cut')}, spread over the shards: what their tokens sound like through the codec that "
        f"made them, at most {LONGEST_SECONDS:g} s of each."
    )


def codes_text(figures: Figures) -> str:
    usage, tokens = figures.usage(), int(figures.codes.sum())
    if not usage:
        return "There are no tokens."
    runs = figures.runs[2:].sum() / tokens
    return (
        f"{usage['used'] * len(figures.codes):,.0f} of {len(figures.codes):,} codes occur in {tokens:,} tokens; the "
        f"entropy of their distribution is {usage['entropy_bits']:.2f} bits, {usage['normalised_entropy']:.3f} of the "
        f"most there could be. {100 * runs:.1f} % of the tokens equal a neighbour of theirs."
    )


def size_text(figures: Figures) -> str:
    hours, all_bytes = figures.hours, figures.sizes.total()
    if not hours:
        return f"{size(all_bytes)} in all, and no audio."
    return (
        f"{size(all_bytes)} in all: {size(all_bytes / hours)} an hour, {all_bytes / figures.ideal_bytes:.1f} times the "
        f"{size(figures.ideal_bytes / hours)} an hour that the bits of the codes take alone. Tar and NumPy headers, "
        "about two kilobytes a cut, are the price of shards that other libraries read unmodified."
    )


def quarantine_text(figures: Figures) -> str:
    totals = figures.description.totals
    if not totals.quarantined:
        return f"None: all of {counted(totals.planned, 'planned cut')} could be tokenized."
    share = 100 * totals.quarantined / totals.planned
    return (
        f"{totals.quarantined:,} of {counted(totals.planned, 'planned cut')} ({share:.3g} %) could not be "
        "tokenized. The first one of each reason stands below, all are in quarantine.jsonl."
    )


def speed_text(speed: Speed | None) -> str:
    if speed is None:
        return (
            "Not known. The bytes of a dataset say nothing of the clock; `focalstream tokenize --log FILE` notes it "
            "elsewhere, and `focalstream report --log FILE` draws it here."
        )
    hours, audio = speed.points[-1]
    runs = f" in {speed.runs} runs" if speed.runs > 1 else ""
    return f"{audio:,.2f} h of audio in {hours:,.2f} h{runs}: {speed.times_real_time:,.0f} x real time."


def identity(description: Description) -> dict[str, str]:
    codec, made_from = description.codec, description.made_from
    rest = {name: value for name, value in made_from.items() if name not in ("input", "codec")}
    return {
        "codec": codec.name,
        "fingerprint": codec.fingerprint,
        "rates": f"{codec.sample_rate} Hz in; {codec.bits_per_token} bits {codec.token_rate:g} times a second",
        "input": ", ".join(map(str, made_from.get("input", {}).get("paths", ["other datasets"]))),
        **{name: plain(value) for name, value in rest.items()},
        "totals": plain(vars(description.totals)),
        "versions": plain(description.tools),
        "checksum": description.checksum,
    }


# ---- charts -----------------------------------------------------------------------------------------------------


def cut_charts(figures: Figures) -> str:
    """Durations, tokens per speaker and language."""
    if not figures.durations:
        return ""
    steps = np.zeros(max(figures.durations) + 1)
    steps[list(figures.durations)] = list(figures.durations.values())
    # The longest thousandth would press the rest into a corner.
    shown = int(np.searchsorted(np.cumsum(steps), 0.999 * steps.sum())) + 1
    merged = -(-shown // MOST_COLUMNS)
    columns = np.add.reduceat(steps[:shown], np.arange(0, shown, merged))
    longest = (len(steps)) * DURATION_STEP
    note = f"the longest are of up to {longest:g} s" if shown < len(steps) else ""
    charts = [columns_html("Cuts by duration", columns.tolist(), merged * DURATION_STEP, "s", "", note)]
    rate = figures.description.codec.token_rate
    for title, counts in (("speaker", figures.speakers), ("language", figures.languages)):
        if len(counts) > 1:
            known = len(counts) - (NOT_SAID in counts)
            charts.append(names_html(f"Hours by {title}: {counted(known, title)}", counts, rate))
    return "".join(charts)


def cuts_text(figures: Figures) -> str:
    """What needs no chart: that all cuts say the same, or nothing."""
    said = []
    for title, counts in (("speaker", figures.speakers), ("language", figures.languages)):
        if len(counts) == 1:
            only = next(iter(counts))
            said.append(f"The cuts do not say their {title}." if only == NOT_SAID else f"The only {title} is {only}.")
    return " ".join(said)


def names_html(title: str, tokens: Counter[str], token_rate: float) -> str:
    """The largest ones, and the rest as one bar."""
    largest = tokens.most_common(MOST_BARS)
    hours = [(name, count / token_rate / 3600) for name, count in largest]
    most = hours[0][1]
    bars = [Bar(name, value, duration_text(value), "codec") for name, value in hours]
    if len(tokens) > len(largest):
        others = [count for name, count in tokens.items() if name not in dict(largest)]
        mean = sum(others) / len(others) / token_rate / 3600
        bars.append(Bar(f"{len(others):,} others, mean", mean, duration_text(mean), ""))
    return bars_html(title, bars, most)


def code_charts(figures: Figures) -> str:
    """How evenly codes are used, how often each bit is set, how long a token stays the same."""
    tokens = int(figures.codes.sum())
    if not tokens:
        return ""
    ranked = np.sort(figures.codes)[::-1] / tokens * len(figures.codes)
    places = np.unique(np.linspace(0, len(ranked) - 1, CURVE_POINTS).astype(int))
    usage = [(float(place), float(ranked[place])) for place in places]
    bits = [
        Bar(f"bit {number}", share, f"{100 * share:.1f} %", "codec")
        for number, share in zip(range(len(figures.bit_shares()), 0, -1), figures.bit_shares(), strict=True)
    ]
    runs = figures.runs / tokens
    last = max(5, int(np.flatnonzero(runs).max()))
    shown = [length for length in range(1, last + 1) if length <= 8 or length == last]
    length_bars = [Bar(run_name(length, last), *run_share(runs, length, last), "codec") for length in shown]
    return (
        curve_html("Codes by rank, how many times their even share of the tokens each has", usage, "", "×", 1.0)
        + bars_html("How often each bit is set, of all tokens", bits, 1.0)
        + bars_html("Tokens in runs of equal ones, by the run's length", length_bars, 1.0)
    )


def run_name(length: int, last: int) -> str:
    if length < 9:
        return f"{length}{' (alone)' if length == 1 else ''}"
    return f"9 to {last}{' or more' if last == LONGEST_RUN else ''}"


def run_share(runs: np.ndarray, length: int, last: int) -> tuple[float, str]:
    share = float(runs[length] if length < 9 else runs[9 : last + 1].sum())
    return share, f"{100 * share:.2g} %" if share else "0"


def size_charts(figures: Figures) -> str:
    hour = figures.hours
    if not hour:
        return ""
    kinds = [(kind, bytes_ / hour) for kind, bytes_ in figures.sizes.most_common()]
    rows = [("all", figures.sizes.total() / hour, "ceiling"), *((kind, value, "codec") for kind, value in kinds)]
    bars = [Bar(kind, value, size(value), colour) for kind, value, colour in rows]
    bars.append(Bar("ideal: the codes' bits alone", figures.ideal_bytes / hour, size(figures.ideal_bytes / hour), ""))
    charts = bars_html("Bytes an hour of audio", bars, bars[0].value or 1.0)
    shards = figures.description.shards
    if len(shards) > 1:
        hours = np.array([entry.seconds for entry in shards]) / 3600
        merged = -(-len(shards) // MOST_COLUMNS)
        columns = np.add.reduceat(hours, np.arange(0, len(hours), merged))
        title = "Audio by shard" if merged == 1 else f"Audio by shard, {merged} a column"
        charts += columns_html(title, columns.tolist(), merged, "shards", "h")
    return charts


def quarantine_charts(figures: Figures) -> str:
    if not figures.reasons:
        return ""
    counts = [(reason, count) for reason, (count, _) in figures.reasons.items()]
    bars = [Bar(reason, count, f"{count:,}", "ceiling") for reason, count in counts]
    return bars_html("Cuts by reason", bars, counts[0][1])


def speed_charts(speed: Speed | None) -> str:
    if speed is None:
        return ""
    places = np.unique(np.linspace(0, len(speed.points) - 1, CURVE_POINTS).astype(int))
    in_minutes = speed.points[-1][0] < 2
    scale, unit = (60, "min") if in_minutes else (1, "h at work")
    points = [(speed.points[place][0] * scale, speed.points[place][1]) for place in places]
    return curve_html("Audio done over time", points, unit, "h")


# ---- pieces -----------------------------------------------------------------------------------------------------


def sample_html(sample: Sample) -> str:
    title = f"“{sample.text}”" if sample.text else sample.id
    said = [sample.id, f"speaker {sample.speaker}" if sample.speaker else "", f"{sample.seconds:.1f}\u00a0s"]
    uri = data_uri("audio/mpeg", mp3_bytes(sample.wave, sample.sample_rate))
    return (
        f'<article><h3>{escape(title)}</h3><p class="soft">{escape(", ".join(filter(None, said)))}</p>'
        f'<audio controls preload="none" aria-label="{escape(title)}" src="{uri}"></audio></article>'
    )


def examples_html(figures: Figures) -> str:
    lines = {
        reason: f"{failed.id} ({failed.source or 'no source'}): {failed.detail}"
        for reason, (_, failed) in figures.reasons.items()
    }
    return f'<dl class="terms">{terms_html(lines)}</dl>' if lines else ""


def terms_html(terms: dict[str, str]) -> str:
    return "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in terms.items())


def plain(value: Any) -> str:
    """A value of `dataset.json` in words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(inner)}" for name, inner in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def duration_text(hours: float) -> str:
    return f"{hours:,.2f} h" if hours >= 0.1 else f"{60 * hours:.1f} min"


def bitrate(codec: CodecEntry) -> float:
    return codec.token_rate * codec.bits_per_token
