"""The stages of the demo. Each does one part of the work and measures it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
import torch

from pipelines.bulk.encoding import CPU_THREADS, fixed_cpu_threads
from pipelines.bulk.run import Job, Result, tokenize
from pipelines.dataset.batches import PackedBatches
from pipelines.dataset.token_dataset import TokenDataset
from pipelines.format.description import read_description
from pipelines.format.layout import Layout
from pipelines.sources.audio import read_wave
from pipelines.sources.manifests import SourceCut
from pipelines.tools.verify import verify
from slm.demo.demo_page import ShownClip, Waveform
from slm.demo.figures import CodecFigures, ContinuationFigures, DatasetFigures, ModelFigures, TrainingFigures
from slm.demo.split import speaker, text, write_manifest
from slm.evaluation.baselines import Counts
from slm.generation.continuation import Continuation, warm_up
from slm.generation.sampling import Sampling
from slm.model.transformer import LanguageModel, ModelConfig
from slm.training.loaders import FRAMING
from slm.training.settings import TrainSettings
from slm.training.train import train, validate
from slm.vocabulary import Vocabulary
from tokenizer import Codec
from tokenizer.errors import InputError
from tokenizer.metrics import METRICS_RATE, speech_quality

SAMPLING = Sampling(temperature=1.0, top_p=0.95)


@dataclass(frozen=True)
class TokenizedPart:
    """One of the two tokenized datasets. `bytes` includes shards and index."""

    folder: Path
    dataset: TokenDataset
    result: Result
    verify_seconds: float
    bytes: int
    shards: int


def tokenize_part(cuts: Sequence[SourceCut], name: str, out: Path, codec: str) -> TokenizedPart:
    """Write the manifest `out`/lists/`name`.jsonl.gz, tokenize it to `out`/tokens/`name`, and verify the result.

    Raises:
        InputError: none of the cuts could be tokenized.
    """
    manifest = out / "lists" / f"{name}.jsonl.gz"
    write_manifest(manifest, cuts)
    folder = out / "tokens" / name
    result = tokenize(Job(str(manifest), folder, codec, max_quarantine_rate=1.0))
    if not result.totals.cuts:
        raise InputError(
            f"{manifest}: none of its {len(cuts)} cuts could be tokenized; the reasons are in "
            f"{folder / 'quarantine.jsonl'}"
        )
    began = time.monotonic()
    problems = verify(folder)
    verify_seconds = time.monotonic() - began
    if problems:
        raise RuntimeError(f"{folder} was written just now and is not sound: {problems[0]}")
    shards = read_description(Layout(folder)).shards
    size = sum(stored.bytes for shard in shards for stored in shard.files.values())
    return TokenizedPart(folder, TokenDataset(folder), result, verify_seconds, size, len(shards))


def dataset_figures(source: str, bundled: bool, training: TokenizedPart, held_out: TokenizedPart) -> DatasetFigures:
    """The figures of both datasets together."""
    parts = (training, held_out)
    totals = [part.result.totals for part in parts]
    seconds_of_speech = sum(total.seconds for total in totals)
    tokens = sum(total.tokens for total in totals)
    elapsed = sum(part.result.elapsed for part in parts)
    codebook_size = training.dataset.codebook_size
    counts = code_counts(training.dataset) + code_counts(held_out.dataset)
    bits = (codebook_size - 1).bit_length()
    return DatasetFigures(
        source=source,
        bundled=bundled,
        cuts=sum(total.cuts for total in totals),
        heldout_cuts=totals[1].cuts,
        quarantined=sum(total.quarantined for total in totals),
        hours=seconds_of_speech / 3600,
        tokens=tokens,
        codes_used=int((counts > 0).sum()),
        codebook_size=codebook_size,
        shards=sum(part.shards for part in parts),
        seconds=elapsed,
        times_real_time=seconds_of_speech / elapsed,
        verify_seconds=sum(part.verify_seconds for part in parts),
        bytes_per_hour=sum(part.bytes for part in parts) / (seconds_of_speech / 3600),
        packed_bytes_per_hour=tokens * bits / 8 / (seconds_of_speech / 3600),
    )


def code_counts(dataset: TokenDataset) -> np.ndarray:
    """Counts of each code: int64 [codebook_size]."""
    counts = np.zeros(dataset.codebook_size, np.int64)
    for index in range(len(dataset)):
        counts += np.bincount(dataset.codes(index), minlength=dataset.codebook_size)
    return counts


def unigram_bits(training: TokenDataset, held_out: TokenDataset) -> float:
    """Bits per held-out code or end of the unigram of the training data."""
    counts = Counts(map(training.codes, range(len(training))), training.codebook_size)
    return float(np.concatenate(counts.unigram([held_out.codes(i) for i in range(len(held_out))])).mean())


def resynthesise(
    codec: Codec, held_out: TokenizedPart, cuts: Sequence[SourceCut]
) -> tuple[list[ShownClip], CodecFigures]:
    """Encode each cut for the timing, and decode the tokens in the shards."""
    places = {held_out.dataset.cut_id(index): index for index in range(len(held_out.dataset))}
    clips, encode_seconds, decode_seconds, quality = [], 0.0, 0.0, []
    for source in cuts:
        wave = read_wave(source, codec.sample_rate_in)
        tokens = torch.from_numpy(held_out.dataset.codes(places[source.cut["id"]]).astype(np.int64))
        with fixed_cpu_threads():
            began = time.perf_counter()
            codec.encode(torch.from_numpy(wave))
            encoded = time.perf_counter()
            decoded = codec.decode(tokens)[0].float().numpy()
            decode_seconds += time.perf_counter() - encoded
            encode_seconds += encoded - began
        decoded = decoded[: round(len(wave) * codec.sample_rate_out / codec.sample_rate_in)]
        quality.append(
            speech_quality(
                soxr.resample(wave, codec.sample_rate_in, METRICS_RATE),
                soxr.resample(decoded, codec.sample_rate_out, METRICS_RATE),
            )
        )
        clips.append(
            ShownClip(
                name=source.cut["id"],
                speaker=speaker(source.cut),
                text=text(source.cut),
                original=Waveform(wave, codec.sample_rate_in),
                resynthesis=Waveform(decoded, codec.sample_rate_out),
            )
        )
    seconds = sum(clip.original.seconds for clip in clips)
    return clips, CodecFigures(
        name=codec.name,
        fingerprint=codec.fingerprint,
        parameters=sum(parameter.numel() for parameter in codec.parameters()),
        token_rate=codec.token_rate,
        bits_per_token=codec.bits_per_token,
        bitrate=codec.bitrate,
        latency_ms=codec.latency_ms,
        encode_times_real_time=seconds / encode_seconds,
        decode_times_real_time=seconds / decode_seconds,
        cpu_threads=CPU_THREADS,
        pesq_wb=mean([measured["pesq_wb"] for measured in quality]),
        stoi=mean([measured["stoi"] for measured in quality]),
    )


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None if all are."""
    measured = [value for value in values if value is not None]
    return sum(measured) / len(measured) if measured else None


def train_fresh(
    config: ModelConfig,
    settings: TrainSettings,
    seconds: float,
    training: TokenizedPart,
    held_out: TokenizedPart,
    out: Path,
) -> TrainingFigures:
    """Train a model from random weights for `seconds` at most; `load_lm(out)` loads its best checkpoint.

    Raises:
        KeyboardInterrupt: the training was stopped by a signal.
    """
    began = time.monotonic()
    report = train(config, settings, [training.folder], out, held_out=[held_out.folder], seconds=seconds)
    taken = time.monotonic() - began
    if report.stopped_by.startswith("SIG"):
        raise KeyboardInterrupt
    log = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = [
        (record["step"], record["held_out_bits_per_token"]) for record in log if "held_out_bits_per_token" in record
    ]
    return TrainingFigures(
        steps=report.step,
        seconds=taken,
        tokens_per_second=float(np.median([record["tokens_per_second"] for record in log])),
        epochs=report.epochs,
        train_curve=[(record["step"], record["bits_per_token"]) for record in log],
        heldout_curve=curve,
        best_step=min(curve, key=lambda point: point[1])[0],
        unigram_bits_per_token=unigram_bits(training.dataset, held_out.dataset),
        uniform_bits_per_token=float(np.log2(training.dataset.codebook_size)),
    )


def evaluate(name: str, model: LanguageModel, held_out: TokenizedPart, settings: TrainSettings) -> ModelFigures:
    """The loss of a model on the held-out rows of the training's validation."""
    batches = PackedBatches(held_out.dataset, FRAMING, settings.rows, settings.row_tokens, settings.seed)
    bits = validate(model, batches, settings)
    model.eval()  # validation leaves the model in training mode
    return ModelFigures(
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        heldout_bits_per_token=bits,
        heldout_bits_per_second=bits * held_out.dataset.token_rate,
    )


def continue_prompt(
    codec: Codec,
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: np.ndarray,
    seconds: float,
    seed: int,
    name: str,
    file: str,
) -> tuple[Waveform, ContinuationFigures, list[int]]:
    """Continue a prompt, float32 [S] at `codec.sample_rate_in`.

    Returns:
        Prompt and continuation as one sound, the figures (with the model's `name` and the audio `file`), and the tokens
        of both.
    """
    with fixed_cpu_threads():
        warm_up(codec, model, vocabulary)
        run = Continuation(codec, model, vocabulary, prompt, SAMPLING, seed, min_seconds=seconds, max_seconds=seconds)
        chunks = list(run.chunks())
    timing = run.timing()
    figures = ContinuationFigures(name, file, timing, SAMPLING)
    wave = np.concatenate([run.prompt_audio, *(chunk.audio for chunk in chunks)])
    tokens = np.concatenate([run.prompt_codes, *(chunk.codes for chunk in chunks)])
    return Waveform(wave, codec.sample_rate_out), figures, tokens.tolist()
