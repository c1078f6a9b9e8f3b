"""An evaluation of a language model as text for the terminal. The page uses the same rows and sentences."""

from __future__ import annotations

from typing import Any

from pipelines.evaluation.codec_table import Grid, aligned
from slm.evaluation.evaluate import LM, share_of_unigram

SAMPLE_COLUMNS = {  # figure -> head, digits, scale
    "seconds": ("mean length, s", 2, 1),
    "ended": ("ended %", 0, 100),
    "entropy_bits": ("entropy, bits", 2, 1),
    "repeated": ("repeated tokens %", 1, 100),
    "repeated_ngrams": ("repeated 4-grams %", 1, 100),
    "silent": ("silence %", 1, 100),
    "words_per_second": ("words/s", 2, 1),
    "sure_words": ("sure words %", 0, 100),
    "sure_words_per_second": ("sure words/s", 2, 1),
    "auto_bleu": ("auto-BLEU %", 1, 100),
    "generation_perplexity": ("GenPPL", 0, 1),
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


def likelihood_rows(result: dict[str, Any]) -> Grid:
    """Bits and perplexity of each system, and how often its most likely token is wrong."""
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
    head = [
        "held-out speech",
        "bits per token",
        "bits per second",
        "perplexity",
        "token errors %",
        "wrong bits per token",
    ]
    return head, rows


def choice_rows(result: dict[str, Any]) -> Grid:
    """The accuracy of each system in every test."""
    systems = list(result["likelihood"])
    rows = []
    for name, tests in choices(result).items():
        of_lm = tests[LM]
        interval = f"{100 * of_lm['low']:.0f} to {100 * of_lm['high']:.0f}"
        shares = [f"{100 * tests[system]['accuracy']:.1f}" for system in systems]
        rows.append([name, str(of_lm["items"]), shares[0], interval, *shares[1:]])
    return ["accuracy, %", "pairs", systems[0], "95 % interval", *systems[1:]], rows


def choices(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every test of pairs by its name."""
    hold = (result["settings"]["swaps"] or {}).get("hold")
    kept = f" (same {hold})" if hold else ""
    words = {
        "true": "true continuation vs another {}",
        "matched": "same {0} vs another {0} (other recordings)",
    }
    named = {
        words[test].format(field) + kept: systems
        for field, tests in result["swaps"].items()
        for test, systems in tests.items()
    }
    return {**named, **result["benchmarks"]}


def transcript_rows(result: dict[str, Any]) -> Grid:
    """Error rates of the transcripts; empty where there are none."""
    if not (found := result["transcripts"]):
        return [], []
    rates = [found[f"{kind}_error_rate"] for kind in ("piece", "character", "word")]
    head = [f"{found['count']} transcripts", "words", "piece errors %", "character errors %", "word errors %"]
    return head, [[LM, str(found["words"]), *("-" if rate is None else f"{100 * rate:.1f}" for rate in rates)]]


def sample_rows(result: dict[str, Any]) -> Grid:
    """Figures of the original and the sampled continuations; empty where none were drawn."""
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
        f"the language model needs {100 * share:.1f} % of the unigram's bits",
        f"baselines counted on {baseline['tokens']:,} training tokens: unigram (add-one smoothing) and bigram "
        f"(interpolated with the unigram, {pseudo_count})",
    ]
