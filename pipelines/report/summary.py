"""The sentences of a report, for the page and for the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pipelines.bulk.progress import Speed
from pipelines.format.description import Description
from pipelines.pages.html import Row
from pipelines.report.figures import NOT_SAID, Figures
from pipelines.report.samples import LONGEST_SECONDS, Sample
from pipelines.storage.stable_bytes import bytes_text
from tokenizer.errors import counted


def introduction(figures: Figures) -> str:
    description, shards = figures.description, len(figures.description.shards)
    codec, totals = description.codec, description.totals
    bitrate = codec.token_rate * codec.bits_per_token
    if figures.shards_read == shards:
        coverage = "The figures cover all shards."
    else:
        coverage = (
            f"Totals and sizes cover all shards; the other figures come from {figures.shards_read:,} of them, spread "
            "evenly."
        )
    return (
        f"{counted(totals.cuts, 'cut')} in {counted(shards, 'shard')}, tokenized by codec {codec.name}: "
        f"{codec.token_rate:g} tokens per second of {codec.bits_per_token} bits, {bitrate:g} bit/s. {coverage}"
    )


def headlines(figures: Figures) -> list[Row]:
    """The key figures."""
    totals, usage = figures.description.totals, figures.usage()
    rows = [
        Row("of audio", f"{totals.hours:,.2f} h"),
        Row("tokens", f"{totals.tokens:,}"),
        Row("cuts", f"{totals.cuts:,}"),
        Row("quarantined cuts", f"{totals.quarantined:,}"),
    ]
    if figures.hours:
        rows.append(Row("on disk per hour of audio", bytes_text(figures.sizes.total() / figures.hours)))
    if usage:
        bits = figures.description.codec.bits_per_token
        rows.append(Row("codebook used", f"{100 * usage['used']:.1f} %"))
        rows.append(Row("entropy", f"{usage['entropy_bits']:.2f} of {bits} bits"))
    return rows


def samples_text(samples: Sequence[Sample], why_silent: str) -> str:
    if not samples:
        return why_silent
    return (
        f"{counted(len(samples), 'cut')} from shards spread over the dataset, decoded from their tokens. Long cuts are "
        f"cut off after {LONGEST_SECONDS:g} s."
    )


def cuts_text(figures: Figures) -> str:
    """What needs no chart: that all cuts have the same speaker or language, or none."""
    said = []
    for title, counts in (("speaker", figures.speakers), ("language", figures.languages)):
        if len(counts) == 1:
            only = next(iter(counts))
            said.append(f"The cuts have no {title} label." if only == NOT_SAID else f"The only {title} is {only}.")
    return " ".join(said)


def codes_text(figures: Figures) -> str:
    usage, tokens = figures.usage(), int(figures.codes.sum())
    if not usage:
        return "There are no tokens."
    repeated = figures.runs[2:].sum() / tokens
    used = round(usage["used"] * len(figures.codes))
    return (
        f"{used:,} of {len(figures.codes):,} codes occur in {counted(tokens, 'token')}; "
        f"the entropy of their distribution is {usage['entropy_bits']:.2f} bits "
        f"({usage['normalised_entropy']:.3f} of the maximum). {100 * repeated:.1f} % of the tokens equal the token "
        "before or after them."
    )


def size_text(figures: Figures) -> str:
    hours, all_bytes = figures.hours, figures.sizes.total()
    if not hours:
        return f"{bytes_text(all_bytes)} in all, and no audio."
    per_hour, ideal = bytes_text(all_bytes / hours), bytes_text(figures.ideal_bytes / hours)
    return (
        f"{bytes_text(all_bytes)} in all, {per_hour} per hour of audio. That is {all_bytes / figures.ideal_bytes:.1f} "
        f"times the bit-packed ideal, {ideal} per hour. Tar and NumPy headers take about 2 kB per cut; they let other "
        "libraries read the shards unmodified."
    )


def quarantine_text(figures: Figures) -> str:
    totals = figures.description.totals
    planned = counted(totals.planned, "planned cut")
    if not totals.quarantined:
        return f"None: all of {planned} could be tokenized."
    share = 100 * totals.quarantined / totals.planned
    return (
        f"{totals.quarantined:,} of {planned} ({share:.3g} %) could not be tokenized. The first cut for each reason "
        "is shown; quarantine.jsonl has all of them."
    )


def speed_text(speed: Speed | None) -> str:
    if speed is None:
        return (
            "Not known: a dataset does not record its timing. Tokenize with `focalstream tokenize --log FILE`, "
            "and give the same file to `focalstream report --log FILE`."
        )
    hours, audio = speed.points[-1]
    runs = f" in {speed.runs} runs" if speed.runs > 1 else ""
    return f"{audio:,.2f} h of audio in {hours:,.2f} h{runs}: {speed.times_real_time:,.0f} x real time."


def identity(description: Description) -> dict[str, str]:
    """What the dataset was made from and with."""
    codec, made_from = description.codec, description.made_from
    rest = {name: value for name, value in made_from.items() if name not in ("input", "codec")}
    return {
        "codec": codec.name,
        "fingerprint": codec.fingerprint,
        "rates": f"{codec.sample_rate} Hz audio, {codec.token_rate:g} tokens per second of {codec.bits_per_token} bits",
        "input": ", ".join(map(str, made_from.get("input", {}).get("paths", ["other datasets"]))),
        **{name: plain(value) for name, value in rest.items()},
        "totals": plain(vars(description.totals)),
        "versions": plain(description.tools),
        "checksum": description.checksum,
    }


def plain(value: Any) -> str:
    """A value of `dataset.json` as text."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(inner)}" for name, inner in value.items())
    return value if isinstance(value, str) else json.dumps(value)
