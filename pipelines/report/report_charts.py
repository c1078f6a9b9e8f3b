"""The charts of a report. Each function returns those that the dataset has something to show for."""

from __future__ import annotations

from collections import Counter

import numpy as np
from markupsafe import Markup

from pipelines.bulk.progress import Speed
from pipelines.pages.charts import Bar, bars, columns, curve
from pipelines.report.figures import DURATION_STEP, LONGEST_RUN, NOT_SAID, Figures
from pipelines.storage.stable_bytes import bytes_text
from tokenizer.errors import counted

MOST_BARS = 12
MOST_COLUMNS = 40
CURVE_POINTS = 200
LONGEST_OWN_BAR = 8  # tokens; longer runs share one bar


def cut_charts(figures: Figures) -> list[Markup]:
    """Durations, and hours by speaker and by language."""
    if not figures.durations:
        return []
    steps = np.zeros(max(figures.durations) + 1)
    steps[list(figures.durations)] = list(figures.durations.values())
    # The longest cuts, one in a thousand, would squeeze the others into a corner.
    shown = int(np.searchsorted(np.cumsum(steps), 0.999 * steps.sum())) + 1
    merged = -(-shown // MOST_COLUMNS)
    heights = np.add.reduceat(steps[:shown], np.arange(0, shown, merged))
    note = f"The longest cuts, up to {len(steps) * DURATION_STEP:g} s, are not shown." if shown < len(steps) else ""
    charts = [columns("Cuts by duration", heights.tolist(), merged * DURATION_STEP, "s", "", note)]
    rate = figures.description.codec.token_rate
    for title, counts in (("speaker", figures.speakers), ("language", figures.languages)):
        if len(counts) > 1:
            known = len(counts) - (NOT_SAID in counts)
            charts.append(name_chart(f"Audio by {title} ({counted(known, title)})", counts, rate))
    return charts


def name_chart(title: str, tokens: Counter[str], token_rate: float) -> Markup:
    """The largest ones, and the mean of the others."""
    largest = dict(tokens.most_common(MOST_BARS))
    hours = {name: count / token_rate / 3600 for name, count in largest.items()}
    items = [Bar(name, value, duration_text(value), "accent") for name, value in hours.items()]
    if others := [count for name, count in tokens.items() if name not in largest]:
        mean = sum(others) / len(others) / token_rate / 3600
        items.append(Bar(f"mean of {len(others):,} others", mean, duration_text(mean)))
    return bars(title, items, items[0].value)


def code_charts(figures: Figures) -> list[Markup]:
    """How evenly the codebook is used, how often each bit is 1, and how long a token is repeated."""
    tokens = int(figures.codes.sum())
    if not tokens:
        return []
    ranked = np.sort(figures.codes)[::-1] / tokens * len(figures.codes)
    places = np.unique(np.linspace(0, len(ranked) - 1, CURVE_POINTS).astype(int))
    usage = [(float(place), float(ranked[place])) for place in places]
    shares = figures.bit_shares()
    bits = [
        Bar(f"bit {number}", share, f"{100 * share:.1f} %", "accent")
        for number, share in zip(range(len(shares), 0, -1), shares, strict=True)
    ]
    return [
        curve("Frequency by rank, as a multiple of uniform use", usage, "", "×", 1.0),
        bars("Share of tokens in which each bit is 1", bits, 1.0),
        bars("Share of tokens by the length of their run of equal tokens", run_bars(figures.runs / tokens), 1.0),
    ]


def run_bars(shares: np.ndarray) -> list[Bar]:
    """Bars of runs, shares [LONGEST_RUN + 1] by length: one for each short length, and one for all longer ones."""
    last = max(5, int(np.flatnonzero(shares).max()))
    of_length = {"1 (no repetition)": float(shares[1])}
    of_length |= {str(length): float(shares[length]) for length in range(2, min(last, LONGEST_OWN_BAR) + 1)}
    if last > LONGEST_OWN_BAR:
        name = f"{LONGEST_OWN_BAR + 1} to {last}{' or more' if last == LONGEST_RUN else ''}"
        of_length[name] = float(shares[LONGEST_OWN_BAR + 1 :].sum())
    return [Bar(name, share, f"{100 * share:.2g} %" if share else "0", "accent") for name, share in of_length.items()]


def size_charts(figures: Figures) -> list[Markup]:
    """Bytes by kind of file, and audio by shard."""
    hours = figures.hours
    if not hours:
        return []
    total = figures.sizes.total() / hours
    kinds = [
        Bar(kind, count / hours, bytes_text(count / hours), "accent") for kind, count in figures.sizes.most_common()
    ]
    ideal = figures.ideal_bytes / hours
    items = [
        Bar("all files", total, bytes_text(total), "second"),
        *kinds,
        Bar("bit-packed ideal", ideal, bytes_text(ideal)),
    ]
    charts = [bars("Bytes per hour of audio", items, total or 1.0)]
    shards = figures.description.shards
    if len(shards) > 1:
        audio = np.array([entry.seconds for entry in shards]) / 3600
        merged = -(-len(shards) // MOST_COLUMNS)
        heights = np.add.reduceat(audio, np.arange(0, len(audio), merged))
        title = "Audio by shard" if merged == 1 else f"Audio by shard, {merged} shards per column"
        charts.append(columns(title, heights.tolist(), merged, "shards", "h"))
    return charts


def quarantine_charts(figures: Figures) -> list[Markup]:
    items = [Bar(reason, count, f"{count:,}", "second") for reason, (count, _) in figures.reasons.items()]
    return [bars("Quarantined cuts by reason", items, items[0].value)] if items else []


def speed_charts(speed: Speed | None) -> list[Markup]:
    if speed is None:
        return []
    places = np.unique(np.linspace(0, len(speed.points) - 1, CURVE_POINTS).astype(int))
    scale, unit = (60, "min") if speed.points[-1][0] < 2 else (1, "h")
    points = [(speed.points[place][0] * scale, speed.points[place][1]) for place in places]
    return [curve("Audio tokenized over running time", points, unit, "h")]


def duration_text(hours: float) -> str:
    return f"{hours:,.2f} h" if hours >= 0.1 else f"{60 * hours:.1f} min"
