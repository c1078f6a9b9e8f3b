"""`focalstream eval-codec`: a codec's quality on held-out speech, as a table a source and in all."""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from tokenizer.commands.codec_options import add_codec_arguments, load_codec
from tokenizer.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_codec_arguments(parser)
    parser.add_argument("--manifest", required=True, help="Lhotse manifest or folder of held-out speech")
    parser.add_argument("--min-seconds", type=float, default=3.0, help="skip shorter clips")
    parser.add_argument("--per-source", type=int, default=0, help="first N clips of each source; 0: all of them")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads for encoding and decoding")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")


def run(args: argparse.Namespace) -> int:
    import torch

    if args.threads < 1:
        raise InputError(f"--threads is {args.threads}, expected at least 1")
    torch.set_num_threads(args.threads)
    result = evaluate(load_codec(args), args)
    print(json.dumps(result) if args.json else table(result))
    return 0


def evaluate(codec: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Resynthesise every clip and measure it; see `tokenizer.metrics` for the measures."""
    import soxr
    import torch

    from tokenizer.metrics import METRICS_RATE, code_usage, speech_quality

    clips: dict[str, list[dict[str, float | None]]] = defaultdict(list)
    tokens, audio_seconds, codec_seconds = [], 0.0, 0.0
    for source, wave in held_out_clips(args, codec.sample_rate_in):
        began = time.perf_counter()
        codes = codec.encode(torch.from_numpy(wave))
        decoded = codec.decode(codes)[0].cpu().numpy()
        codec_seconds += time.perf_counter() - began
        audio_seconds += len(wave) / codec.sample_rate_in
        tokens.append(codes[0].cpu().numpy())
        reference = soxr.resample(wave, codec.sample_rate_in, METRICS_RATE)
        clips[source].append(speech_quality(reference, soxr.resample(decoded, codec.sample_rate_out, METRICS_RATE)))
    if not clips:
        raise InputError(f"{args.manifest}: no clip of at least {args.min_seconds} s; lower --min-seconds")
    sources = {source: {"clips": len(rows), **means(rows)} for source, rows in sorted(clips.items())}
    flat = np.concatenate(tokens)
    return {
        "codec": codec.name,
        "fingerprint": codec.fingerprint,
        "bitrate": codec.bitrate,
        "latency_ms": codec.latency_ms if codec.causal else None,  # JSON has no infinity
        "sources": sources,
        "mean_over_sources": means(list(sources.values())),
        "tokens": len(flat),
        **code_usage(flat, codec.codebook_size),
        "real_time_factor": audio_seconds / codec_seconds,
        "threads": args.threads,
    }


def means(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Mean of each measure over the rows that have it."""
    out: dict[str, float | None] = {}
    for measure in ("pesq_wb", "stoi", "estoi"):
        values = [row[measure] for row in rows if row[measure] is not None]
        out[measure] = sum(values) / len(values) if values else None
    return out


def held_out_clips(args: argparse.Namespace, sample_rate: int) -> Iterator[tuple[str, np.ndarray]]:
    """(source, float32 [S]) of each clip; a cut's source is `custom.source` of its supervision, else "all"."""
    from pipelines.audio import read_wave
    from pipelines.manifests import find_inputs, read_cuts
    from pipelines.plan import PlannedCut

    seen: dict[str, int] = defaultdict(int)
    for item in read_cuts(find_inputs(args.manifest)):
        cut = PlannedCut(item.cut, "", item.audio)
        supervisions = cut.cut.get("supervisions") or [{}]
        source = (supervisions[0].get("custom") or {}).get("source", "all")
        if cut.seconds < args.min_seconds or (args.per_source and seen[source] >= args.per_source):
            continue
        seen[source] += 1
        yield source, read_wave(cut, sample_rate)


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    latency = "whole utterances" if result["latency_ms"] is None else f"{result['latency_ms']:g} ms"
    lines = [f"{result['codec']}  {result['bitrate']:g} bit/s  {latency}"]
    lines.append(f"{'source':16} {'clips':>5} {'PESQ-WB':>8} {'STOI':>6} {'ESTOI':>6}")
    rows = {**result["sources"], "mean of sources": {"clips": "", **result["mean_over_sources"]}}
    for source, row in rows.items():
        cells = [f"{row[m]:.3f}" if row[m] is not None else "-" for m in ("pesq_wb", "stoi", "estoi")]
        lines.append(f"{source:16} {row['clips']:>5} {cells[0]:>8} {cells[1]:>6} {cells[2]:>6}")
    lines.append(
        f"codes used {result['used']:.1%}, entropy {result['entropy_bits']:.2f} bits "
        f"({result['normalised_entropy']:.3f} of the most) on {result['tokens']} tokens"
    )
    lines.append(f"encode + decode {result['real_time_factor']:.1f} x real time on {result['threads']} thread(s)")
    return "\n".join(lines)
