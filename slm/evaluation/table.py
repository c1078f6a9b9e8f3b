"""An evaluation as text for the terminal; the cells of its tables and its sentences are the page's too."""

from __future__ import annotations

from typing import Any

from pipelines.evaluation.table import aligned
from slm.evaluation.evaluate import LM, share_of_unigram

SAMPLE_COLUMNS = {  # figure -> head, digits, scale
    "seconds": ("mean s", 2, 1),
    "ended": ("ended %", 0, 100),
    "entropy_bits": ("entropy, bits", 2, 1),
    "repeated": ("same code %", 1, 100),
    "repeated_ngrams": ("4 codes again %", 1, 100),
    "silent": ("silent %", 1, 100),
    "words_per_second": ("words/s", 2, 1),
    "sure_words": ("sure words %", 0, 100),
    "sure_words_per_second": ("sure words/s", 2, 1),
}


def table(result: dict[str, Any]) -> str:
    """Likelihood, choices, transcripts, samples, and what was not measured."""
    parameters = result["parameters"] / 1e6
    lines = [f"{result['lm']}  {parameters:.1f} M parameters  codec {result['codec']}  {extent(result)}", ""]
    for head, rows in (likelihood_rows(result), choice_rows(result), transcript_rows(result), sample_rows(result)):
        if rows:
            lines += [*aligned([head, *rows]), ""]
    lines += facts(result)
    lines += [f"not measured: {what}: {why}" for what, why in result["not_measured"].items()]
    return "\n".join(lines)


def extent(result: dict[str, Any]) -> str:
    return f"{result['cuts']:,} cuts, {result['hours']:.2f} h, {result['tokens']:,} tokens"


def likelihood_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: bits and perplexity of each system, and how often its likeliest code is wrong."""
    rows = [
        [
            system,
            f"{row['bits_per_token']:.3f}",
            f"{row['bits_per_second']:.1f}",
            f"{row['perplexity']:.0f}",
            f"{100 * row['token_error_rate']:.1f}",
            "-" if row["wrong_bits"] is None else f"{row['wrong_bits']:.2f}",
        ]
        for system, row in result["likelihood"].items()
    ]
    head = ["held-out", "bits a token", "bits a second of speech", "perplexity", "token errors %", "wrong bits a token"]
    return head, rows


def choice_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: how often each system chose right, of every test."""
    systems = list(result["likelihood"])
    rows = []
    for name, tests in choices(result).items():
        of_lm = tests[LM]
        interval = f"{100 * of_lm['low']:.0f} to {100 * of_lm['high']:.0f}"
        shares = [f"{100 * tests[system]['accuracy']:.1f}" for system in systems]
        rows.append([name, str(of_lm["items"]), shares[0], interval, *shares[1:]])
    return ["right choices, %", "of", systems[0], "95 % of it", *systems[1:]], rows


def choices(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every test of pairs by its name."""
    hold = (result["settings"]["swaps"] or {}).get("hold")
    kept = f", same {hold}" if hold else ""
    words = {
        "true": "true continuation, not of another {}{}",
        "matched": "other recording of the same {0}, not of another{1}",
    }
    named = {
        words[test].format(field, kept): systems
        for field, tests in result["swaps"].items()
        for test, systems in tests.items()
    }
    return {**named, **result["benchmarks"]}


def transcript_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and row: error rates of what the model writes down."""
    if not (found := result["transcripts"]):
        return [], []
    rates = [found[f"{kind}_error_rate"] for kind in ("piece", "character", "word")]
    head = [f"{found['count']} transcripts", "words", "piece errors %", "character errors %", "word errors %"]
    return head, [[LM, str(found["words"]), *("-" if rate is None else f"{100 * rate:.1f}" for rate in rates)]]


def sample_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: what the recordings and the model go on with."""
    if not result["samples"]:
        return [], []
    systems = result["samples"]["systems"]
    measured = [name for name in SAMPLE_COLUMNS if any(row.get(name) is not None for row in systems.values())]
    rows = [[system, *(cell(row.get(name), name) for name in measured)] for system, row in systems.items()]
    count = result["samples"]["count"]
    return [f"{count} continuations", *(SAMPLE_COLUMNS[name][0] for name in measured)], rows


def cell(value: float | None, figure: str) -> str:
    _, digits, scale = SAMPLE_COLUMNS[figure]
    return "-" if value is None else f"{scale * value:.{digits}f}"


def facts(result: dict[str, Any]) -> list[str]:
    """One sentence each on the baselines."""
    if not (share := share_of_unigram(result)):
        return []
    baseline = result["baseline"]
    pseudo_count = f"pseudo-count {baseline['pseudo_count']:g}"
    return [
        f"the language model takes {100 * share:.1f} % of the unigram's bits",
        f"unigram (one added to each count) and bigram (interpolated with it, {pseudo_count}) "
        f"of {baseline['tokens']:,} tokens",
    ]
