"""An evaluation as text for the terminal; the sentences about codes, speed and rounding are the page's too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.evaluation.measures import MEASURES
from pipelines.evaluation.systems import CODEC


def table(result: dict[str, Any]) -> str:
    """Every system in the mean of sources, the codec source by source, and what else was measured."""
    systems = result["systems"]
    by_source = {**systems[CODEC]["sources"], "mean of sources": systems[CODEC]["mean_over_sources"]}
    lines = [f"{result['codec']}  {result['bitrate']:g} bit/s  {latency(result)}", ""]
    lines += grid(
        ["mean of sources", "bit/s"],
        [([name, bitrate(system["bitrate"])], system["mean_over_sources"]) for name, system in systems.items()],
    )
    lines.append("")
    lines += grid(
        ["codec by source", "clips"],
        [([name, str(row.get("clips", ""))], row) for name, row in by_source.items()],
    )
    lines += ["", *facts(result)]
    lines += [f"not measured: {what}: {why}" for what, why in result["not_measured"].items()]
    return "\n".join(lines)


def measured(rows: list[dict[str, Any]]) -> list[str]:
    """The measures that at least one row has."""
    return [measure for measure in MEASURES if any(row.get(measure) is not None for row in rows)]


def grid(heads: list[str], rows: list[tuple[list[str], dict[str, Any]]]) -> list[str]:
    """Lines of a table: leading cells, then the measures that some row has; the first column is set left."""
    columns = measured([row for _, row in rows])
    cells = [[*heads, *(MEASURES[measure].title for measure in columns)]]
    cells += [[*lead, *(MEASURES[measure].text(row.get(measure)) for measure in columns)] for lead, row in rows]
    return aligned(cells)


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, its head first: the first column is set left, the others right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    ]


def facts(result: dict[str, Any]) -> list[str]:
    """One sentence each on codes, bits, speed and rounding."""
    codes, speed, bits = result["codes"], result["speed"], result["codes"]["bits_per_second"]
    recogniser = result.get("recogniser")
    static = bits["order0_static_model"]
    coded = f", {static:.0f} with a static model fitted on the other half of the clips" if static else ""
    streaming = speed.get("streaming_times_real_time")
    live = f", live in chunks {streaming:.1f} x" if streaming else ""
    heard = [f"recogniser: {recogniser} (Whisper on CTranslate2, greedy, English)"] if recogniser else []
    return [
        *heard,
        f"codes used {codes['used']:.1%}, entropy {codes['entropy_bits']:.2f} bits "
        f"({codes['normalised_entropy']:.3f} of the most) on {codes['tokens']} tokens",
        f"bits per second {bits['nominal']:.0f}; entropy coded, order 0: {bits['order0_entropy']:.0f} by the entropy "
        f"of these very tokens{coded}",
        f"encode + decode {speed['times_real_time']:.1f} x real time{live}, on {speed['threads']} thread(s)",
        *(
            f"{name} against one at a time: {flips['flipped']} of {flips['bits']} bits flipped ({flips['rate']:.1e})"
            for name, flips in result["rounding"].items()
        ),
    ]


def latency(result: dict[str, Any]) -> str:
    return "whole utterances" if result["latency_ms"] is None else f"{result['latency_ms']:g} ms latency"


def bitrate(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
