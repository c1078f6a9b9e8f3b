"""An evaluation of a codec as text for the terminal. The page uses the same rows and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.evaluation.measures import MEASURES
from pipelines.evaluation.systems import CODEC

Grid = tuple[list[str], list[list[str]]]  # heads and rows of a table


def table(result: dict[str, Any]) -> str:
    """All systems, the codec by source, and what else was measured."""
    lines = [f"{result['codec']}  {result['bitrate']:g} bit/s  {latency(result)}", ""]
    for name, (heads, rows) in (("mean of sources", system_rows(result)), ("codec by source", source_rows(result))):
        lines += [*aligned([[name, *heads[1:]], *rows]), ""]
    lines += facts(result)
    lines += [f"not measured: {what}: {why}" for what, why in result["not_measured"].items()]
    return "\n".join(lines)


def system_rows(result: dict[str, Any]) -> Grid:
    """Each system's means over the sources."""
    return _with_measures(
        ["", "bit/s"],
        [
            ([name, "" if system["bitrate"] is None else f"{system['bitrate']:g}"], system["mean_over_sources"])
            for name, system in result["systems"].items()
        ],
    )


def source_rows(result: dict[str, Any]) -> Grid:
    """The codec's means for each source, and the mean of these."""
    codec = result["systems"][CODEC]
    rows = {**codec["sources"], "mean of sources": codec["mean_over_sources"]}
    return _with_measures(["", "clips"], [([name, str(row.get("clips", ""))], row) for name, row in rows.items()])


def _with_measures(heads: list[str], rows: list[tuple[list[str], dict[str, Any]]]) -> Grid:
    """Add to each row's first cells the measures that at least one row has."""
    found = [measure for measure in MEASURES if any(row.get(measure) is not None for _, row in rows)]
    cells = [[*lead, *(MEASURES[measure].text(row.get(measure)) for measure in found)] for lead, row in rows]
    return [*heads, *(MEASURES[measure].title for measure in found)], cells


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, heads first: the first column is left-aligned, the others are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    ]


def facts(result: dict[str, Any]) -> list[str]:
    """One sentence each on codebook use, bit rates, speed and rounding."""
    codes, speed, bits = result["codes"], result["speed"], result["codes"]["bits_per_second"]
    static = bits["order0_static_model"]
    coded = f", {static:.0f} with a static model fitted on the other half of the clips" if static else ""
    streaming = speed.get("streaming_times_real_time")
    live = f"; streaming, chunk by chunk: {streaming:.1f} x" if streaming else ""
    recogniser = result.get("recogniser")
    return [
        *([f"recogniser: {recogniser} (Whisper on CTranslate2, greedy, English)"] if recogniser else []),
        f"codebook used: {codes['used']:.1%}; entropy {codes['entropy_bits']:.2f} bits "
        f"({codes['normalised_entropy']:.3f} of the maximum) over {codes['tokens']:,} tokens",
        f"bits per second: {bits['nominal']:.0f}; with order-0 entropy coding {bits['order0_entropy']:.0f} by the "
        f"entropy of these tokens{coded}",
        f"encode + decode: {speed['times_real_time']:.1f} x real time{live}; CPU threads: {speed['threads']}",
        *(
            f"{name} against one clip at a time: {flips['flipped']:,} of {flips['bits']:,} bits differ "
            f"({flips['rate']:.1e})"
            for name, flips in result["rounding"].items()
        ),
    ]


def latency(result: dict[str, Any]) -> str:
    return "whole utterances" if result["latency_ms"] is None else f"{result['latency_ms']:g} ms latency"
