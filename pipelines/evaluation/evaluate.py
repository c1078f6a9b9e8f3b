"""A whole evaluation: clips through every system, measured, averaged by source and over sources."""

from __future__ import annotations

import importlib.util
import multiprocessing
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from pipelines.evaluation.clips import Clip, held_out_clips
from pipelines.evaluation.consistency import compare, encode_alone, encode_together
from pipelines.evaluation.measures import ORIGINAL, ClipJob, Figures, means, measure_clip
from pipelines.evaluation.systems import FEATURES, LATENTS, System, codec_systems, peer_systems
from tokenizer import Codec
from tokenizer.commands.roundtrip import stream
from tokenizer.errors import InputError
from tokenizer.metrics.codes import code_usage, static_model_bits
from tokenizer.metrics.judges import Judges, load_judges
from tokenizer.metrics.package_judges import load_package_judges
from tokenizer.metrics.recogniser import Recogniser, load_recogniser
from tokenizer.metrics.words import word_errors

OF_A_WAVE = ("dnsmos", "utmos")  # judges that hear a wave alone; the others compare it with the original
SPEED_SECONDS = 20.0  # speech that speed and rounding are measured on, before any other process runs


@dataclass(frozen=True)
class Options:
    """What to measure; see the options of `focalstream eval-codec`."""

    manifest: str
    min_seconds: float = 3.0
    per_source: int = 0
    peers: bool = False
    content: bool = False
    models: bool = False
    judges: bool = False
    recogniser: str = "tiny.en"  # with `judges`; see `tokenizer.metrics.recogniser`
    workers: int = 1
    device: str = "cpu"
    page_clips: int = 0  # clips of each source whose sound is kept


@dataclass
class Sounds:
    """A clip for the page: system -> float32 [S] at 16 kHz, the original first."""

    clip: Clip
    waves: dict[str, np.ndarray] = field(default_factory=dict)


def evaluate(codec: Any, options: Options) -> tuple[dict[str, Any], list[Sounds]]:
    """Measure a `Codec` or `OnnxCodec`.

    Returns:
        The result as it is written to JSON, and the sounds for the page.

    Raises:
        InputError: no clip is long enough, or one cannot be read.
    """
    missing = _not_asked_for(options)
    if options.content and importlib.util.find_spec("pocketsphinx") is None:
        missing["wer, dwer"] = "pip install focalstream[content]"
        options = replace(options, content=False)
    if not isinstance(codec, Codec):
        missing[LATENTS] = missing[FEATURES] = "the ONNX engine has no stages in between; use --engine torch"
    systems = [*codec_systems(codec), *(peer_systems(missing) if options.peers else ())]
    judges = load_judges(options.device) if options.models else Judges({}, {})
    missing.update(judges.missing)
    listener = None
    if options.judges:
        of_packages, why = load_package_judges()
        judges = Judges(judges.judges | of_packages, {})
        missing.update(why)
        listener = _listener(options.recogniser, missing)
    live = speed_and_rounding(codec, options)
    run = _Run(codec, systems, judges, listener, options)
    rows: dict[str, dict[str, list[Figures]]] = {system.name: defaultdict(list) for system in systems}
    for source, figures in run.figures():
        for name, row in figures.items():
            rows.setdefault(name, defaultdict(list))[source].append(row)
    order = [ORIGINAL, *(system.name for system in systems)]
    bitrates = {system.name: (system.bitrate, system.kind) for system in systems}
    result = {
        "codec": codec.name,
        "fingerprint": codec.fingerprint,
        "bitrate": codec.bitrate,
        "latency_ms": codec.latency_ms if codec.causal else None,  # JSON has no infinity
        "systems": {
            name: _averaged(rows[name], *bitrates.get(name, (None, ORIGINAL))) for name in order if rows.get(name)
        },
        "codes": code_figures(codec, run.tokens),
        **live,
        "recogniser": options.recogniser if listener else None,
        "not_measured": missing,
    }
    return result, run.sounds


class _Run:
    """One pass over the clips. `tokens` and `sounds` fill up as `figures` goes on."""

    def __init__(
        self, codec: Any, systems: list[System], judges: Judges, listener: Recogniser | None, options: Options
    ) -> None:
        self.codec, self.systems, self.judges, self.options = codec, systems, judges, options
        self.listener = listener
        self.listened = [system.name for system in systems if system.kind != "flips"]  # it is slow
        self.tokens: list[np.ndarray] = []
        self.sounds: list[Sounds] = []
        self.judged: deque[dict[str, Figures]] = deque()  # of the jobs whose other figures are not back yet

    def figures(self) -> Iterator[tuple[str, dict[str, Figures]]]:
        """(source, system -> figures) of each clip, in order."""
        for source, rows in _measured(self._jobs(), self.options.workers):
            for name, figures in self.judged.popleft().items():
                rows.setdefault(name, {}).update(figures)
            yield source, rows

    def _jobs(self) -> Iterator[ClipJob]:
        kept: dict[str, int] = defaultdict(int)
        for clip in _clips(self.codec, self.options):
            tokens = self.codec.encode(torch.from_numpy(clip.wave))[0].cpu().numpy()
            waves = {system.name: system.resynthesise(clip, tokens) for system in self.systems}
            self.tokens.append(tokens)
            self.judged.append(self._judged(clip, waves))
            if kept[clip.source] < self.options.page_clips:
                kept[clip.source] += 1
                self.sounds.append(Sounds(clip, {ORIGINAL: clip.wave, **waves}))
            yield ClipJob(clip.source, clip.wave, waves, clip.text, self.options.content and clip.english)

    def _judged(self, clip: Clip, waves: dict[str, np.ndarray]) -> dict[str, Figures]:
        rows: dict[str, Figures] = {
            name: {measure: judge(clip.wave, wave) for measure, judge in self.judges.judges.items()}
            for name, wave in waves.items()
        }
        rows[ORIGINAL] = {
            measure: self.judges.judges[measure](clip.wave, clip.wave)
            for measure in OF_A_WAVE
            if measure in self.judges.judges
        }
        if self.listener is not None and clip.english:
            heard = {ORIGINAL: self.listener(clip.wave)}
            heard |= {name: self.listener(waves[name]) for name in self.listened}
            for name, text in heard.items():
                if clip.text:
                    rows[name]["wer_recogniser"] = word_errors(clip.text, text)
                if name != ORIGINAL:
                    rows[name]["dwer_recogniser"] = word_errors(heard[ORIGINAL], text)
        return {name: row for name, row in rows.items() if row or name != ORIGINAL}


def _listener(model: str, missing: dict[str, str]) -> Recogniser | None:
    """The recogniser, or None; then into `missing` goes why."""
    try:
        return load_recogniser(model)
    except InputError as error:
        missing["wer_recogniser, dwer_recogniser"] = str(error)
        return None


def speed_and_rounding(codec: Any, options: Options) -> dict[str, Any]:
    """Speed in multiples of real time, and how often rounding flips a bit, on the first seconds of speech."""
    waves: list[np.ndarray] = []
    for clip in _clips(codec, options):
        waves.append(clip.wave)
        if sum(map(len, waves)) >= SPEED_SECONDS * codec.sample_rate_in:
            break
    seconds = sum(map(len, waves)) / codec.sample_rate_in
    codec.decode(codec.encode(torch.from_numpy(waves[0])))  # the first call pays for set-up
    began = time.perf_counter()
    tokens = encode_alone(codec, waves)
    encoded = time.perf_counter()
    for row in tokens:
        codec.decode(torch.from_numpy(row)).cpu()
    decoded = time.perf_counter()
    speed = {
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "encode_times_real_time": seconds / (encoded - began),
        "decode_times_real_time": seconds / (decoded - encoded),
        "times_real_time": seconds / (decoded - began),
    }
    rounding = {"batch": compare(codec, waves, tokens, encode_together(codec, waves))}
    if codec.causal:
        began = time.perf_counter()
        streamed = [stream(codec, torch.from_numpy(wave)[None])[0][0].cpu().numpy() for wave in waves]
        speed["streaming_times_real_time"] = seconds / (time.perf_counter() - began)
        rounding["streaming"] = compare(codec, waves, tokens, streamed)
    return {
        "speed": speed,
        "rounding": {name: {**flips._asdict(), "rate": flips.rate} for name, flips in rounding.items()},
    }


def code_figures(codec: Any, tokens: list[np.ndarray]) -> dict[str, Any]:
    """Use of the codebook, and bits per second before and after entropy coding."""
    usage = code_usage(np.concatenate(tokens), codec.codebook_size)
    static = static_model_bits(tokens, codec.codebook_size)
    return {
        "tokens": sum(map(len, tokens)),
        **usage,
        "bits_per_second": {
            "nominal": codec.bitrate,
            "order0_entropy": usage["entropy_bits"] * codec.token_rate,
            "order0_static_model": None if static is None else static * codec.token_rate,
        },
    }


def _clips(codec: Any, options: Options) -> Iterator[Clip]:
    """The clips of an evaluation, at least one."""
    found = False
    for clip in held_out_clips(options.manifest, codec.sample_rate_in, options.min_seconds, options.per_source):
        found = True
        yield clip
    if not found:
        raise InputError(f"{options.manifest}: no clip of at least {options.min_seconds} s; lower --min-seconds")


def _measured(jobs: Iterable[ClipJob], workers: int) -> Iterator[tuple[str, dict[str, Figures]]]:
    """(source, figures) of each job, in order; few jobs wait at a time, for each holds seconds of many waves."""
    if workers == 1:
        for job in jobs:
            yield job.source, measure_clip(job)
        return
    # Not forked: PyTorch's threads do not survive that.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        pending: deque[tuple[str, Future[dict[str, Figures]]]] = deque()
        for job in jobs:
            pending.append((job.source, pool.submit(measure_clip, job)))
            if len(pending) > 2 * workers:
                source, figures = pending.popleft()
                yield source, figures.result()
        for source, figures in pending:
            yield source, figures.result()


def _averaged(sources: dict[str, list[Figures]], bitrate: float | None, kind: str) -> dict[str, Any]:
    averaged = {source: {"clips": len(rows), **means(rows)} for source, rows in sorted(sources.items())}
    return {"kind": kind, "bitrate": bitrate, "sources": averaged, "mean_over_sources": means(averaged.values())}


def _not_asked_for(options: Options) -> dict[str, str]:
    """Why measures that must be asked for are missing."""
    missing = {}
    if not options.peers:
        missing["Codec2 and Opus"] = "ask for them with --peers"
    if not options.content:
        missing["wer, dwer"] = "ask for them with --content"
    if not options.judges:
        missing["dnsmos, speaker_ge2e, wer_recogniser, dwer_recogniser"] = "ask for them with --judges"
    if not options.models:
        missing["utmos, dwer_whisper, speaker_similarity"] = "ask for them with --models; they are downloaded once"
    return missing
