"""The texts of the demo: the sentences and tables of its page, and the lines on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.sources.cuts import duration
from slm.demo.demo_page import LossCurve, Page, Row, ShownClip, ShownContinuation, Table, Waveform
from slm.demo.figures import (
    CodecFigures,
    ContinuationFigures,
    DatasetFigures,
    DemoFigures,
    ModelFigures,
    TrainingFigures,
)
from slm.demo.split import Split
from tokenizer import Codec
from tokenizer.machine import Choice


def tell(figures: DemoFigures, continuations: Sequence[ShownContinuation], clips: Sequence[ShownClip]) -> Page:
    """The content of the page. Every number in the text comes from the figures."""
    codec, dataset, training = figures.codec, figures.dataset, figures.training
    prompt_seconds = figures.continuations[0].timing.prompt_seconds
    return Page(
        title="Speech to tokens, tokens to speech",
        introduction=[
            f"A streaming codec encoded {dataset.cuts:,} recordings of speech, {in_words(3600 * dataset.hours)} in "
            f"all, as {dataset.tokens:,} tokens of {codec.bits_per_token} bits. The tokens were written to shards, "
            f"read back and checked. A small language model was trained on them for {in_words(training.seconds)}. Then "
            "this model and a pretrained one continued a spoken prompt.",
            f"The whole run took {in_words(figures.seconds)} on {figures.cpu_cores} CPU cores.",
        ],
        caveat=caveat(figures),
        headlines=[
            Row("codec bit rate", f"{codec.bitrate:.0f} bit/s"),
            Row("tokenizing speed", f"{dataset.times_real_time:.0f} × real time"),
            Row(f"model “{figures.shipped.name}” on held-out speech", rate(figures.shipped)),
            Row("time to first audio", milliseconds(figures.continuations[0].timing.first_audio_ms)),
        ],
        continuation_text=f"Both models get the tokens of the same {prompt_seconds:.1f} s of a held-out recording "
        f"({figures.prompt}) and sample the tokens that follow. The dashed line marks the end of the prompt; the "
        "prompt is played as the codec renders it. Below each spectrogram are the tokens, one column each, with "
        f"their {codec.bits_per_token} bits from top to bottom.",
        continuations=continuations,
        resynthesis_text=f"Held-out recordings before and after the codec: encoded to {codec.token_rate:g} tokens "
        f"per second ({codec.bitrate:.0f} bit/s) and decoded again, in chunks of {codec.latency_ms:g} ms.",
        clips=clips,
        dataset_text="Lhotse Shar, WebDataset and Hugging Face datasets all read the same shards. "
        f"Reading them back and checking them took {dataset.verify_seconds:.1f} s.",
        dataset=dataset_table(dataset, codec),
        training_text=f"A model of {millions(figures.fresh.parameters)} parameters was trained from random "
        f"weights for {training.steps:,} steps in {in_words(training.seconds)}. Lower is better. “Uniform” is a random "
        f"guess, {codec.bits_per_token} bits per token; “unigram” knows how often each token occurs, but no context. "
        f"The continuation uses the checkpoint of step {training.best_step}, the best on held-out speech.",
        loss=LossCurve(
            train=training.train_curve,
            held_out=training.heldout_curve,
            levels=[("uniform", training.uniform_bits_per_token), ("unigram", training.unigram_bits_per_token)],
        ),
        figures_text="The file demo.json beside this page has all figures in machine-readable form.",
        tables=[
            codec_table(codec),
            models_table([figures.shipped, figures.fresh], training),
            *map(continuation_table, figures.continuations),
        ],
        footer=f"Made by focalstream {figures.version}.",
    )


def shown_continuation(
    figures: ContinuationFigures, sound: Waveform, tokens: Sequence[int], codec: Codec
) -> ShownContinuation:
    """A continuation as the page shows it."""
    timing, sampling = figures.timing, figures.sampling
    return ShownContinuation(
        title=f"Continued by the language model “{figures.model}”",
        note=f"{timing.prompt_seconds:.1f} s of prompt, {timing.new_seconds:.1f} s sampled at temperature "
        f"{sampling.temperature:g}, top-p {sampling.top_p:g}. First audio {milliseconds(timing.first_audio_ms)} after "
        f"the end of the prompt; real-time factor {factor(timing.real_time_factor)}.",
        sound=sound,
        prompt_seconds=timing.prompt_seconds,
        tokens=tokens,
        token_rate=codec.token_rate,
        bits=codec.bits_per_token,
    )


def caveat(figures: DemoFigures) -> str:
    """What to know before judging the sounds."""
    origin = (
        "The bundled speech is synthetic: espeak-ng voices read the sentences, and no person was recorded. "
        if figures.dataset.bundled
        else ""
    )
    return (
        f"{origin}The models are very small: the codec has {millions(figures.codec.parameters)} parameters, the "
        f"language model “{figures.shipped.name}” {millions(figures.shipped.parameters)}, the one trained here "
        f"{millions(figures.fresh.parameters)}. Expect sounds that resemble speech, not words."
    )


def dataset_table(dataset: DatasetFigures, codec: CodecFigures) -> Table:
    overhead = dataset.bytes_per_hour / dataset.packed_bytes_per_hour
    return Table(
        "Tokenized dataset",
        [
            Row("Cuts", f"{dataset.cuts:,}", f"{dataset.heldout_cuts:,} of them held out"),
            Row("Quarantined cuts", f"{dataset.quarantined:,}", "could not be tokenized"),
            Row("Audio", f"{dataset.hours:.3f} h"),
            Row("Tokens", f"{dataset.tokens:,}"),
            Row("Codebook used", f"{dataset.codes_used:,} of {dataset.codebook_size:,}"),
            Row("Shards", f"{dataset.shards:,}"),
            Row("On disk", f"{dataset.bytes_per_hour / 1e6:.2f} MB per hour", "codes, cuts and indexes"),
            Row(
                "Bit-packed ideal",
                f"{dataset.packed_bytes_per_hour / 1e6:.2f} MB per hour",
                f"{codec.bits_per_token} bits per token and nothing else; the shards take {overhead:.1f} times as much",
            ),
            Row("Time to tokenize", in_words(dataset.seconds), f"{dataset.times_real_time:.1f} × real time"),
        ],
    )


def codec_table(codec: CodecFigures) -> Table:
    threads = f"on {codec.cpu_threads} CPU thread{'s' if codec.cpu_threads > 1 else ''}"
    return Table(
        f"Codec “{codec.name}”",
        [
            Row("Parameters", millions(codec.parameters)),
            Row("Tokens", f"{codec.token_rate:g} per second of {codec.bits_per_token} bits"),
            Row("Bit rate", f"{codec.bitrate:.0f} bit/s"),
            Row("Latency", f"{codec.latency_ms:g} ms", "length of a chunk"),
            Row("Encoding", f"{codec.encode_times_real_time:.0f} × real time", threads),
            Row("Decoding", f"{codec.decode_times_real_time:.0f} × real time", threads),
            Row("PESQ wideband", score(codec.pesq_wb), "mean of the clips above; 1 to 4.64, higher is better"),
            Row("STOI", score(codec.stoi), "mean of the clips above; 0 to 1, higher is better"),
            Row("Fingerprint", codec.fingerprint[:16], "first 16 digits of the SHA-256 that identifies its tokens"),
        ],
    )


def models_table(models: Sequence[ModelFigures], training: TrainingFigures) -> Table:
    rows = []
    for model in models:
        rows.append(Row(f"Model “{model.name}”", rate(model), f"{millions(model.parameters)} parameters"))
    return Table(
        "Language models: bits per second of held-out speech",
        [
            *rows,
            Row("Training speed", f"{training.tokens_per_second:,.0f} tokens per second"),
            Row("Training steps", f"{training.steps:,}", f"{training.epochs:.1f} epochs"),
        ],
    )


def continuation_table(item: ContinuationFigures) -> Table:
    timing = item.timing
    chunk_times = (timing.chunk_ms_p50, timing.chunk_ms_p95, timing.chunk_ms_p99)
    return Table(
        f"Continuation by “{item.model}”",
        [
            Row("Prompt", f"{timing.prompt_seconds:.2f} s"),
            Row("Continuation", f"{timing.new_seconds:.2f} s", item.file),
            Row(
                "Time to first audio",
                milliseconds(timing.first_audio_ms),
                f"after the end of the prompt: encoding {milliseconds(timing.encode_ms)}, priming the decoder "
                f"{milliseconds(timing.prime_ms)}, prefill {milliseconds(timing.prefill_ms)}",
            ),
            Row("Real-time factor", factor(timing.real_time_factor), "computing time divided by duration"),
            Row("Time per chunk", " / ".join(map(milliseconds, chunk_times)), "median, 95th and 99th percentile"),
        ],
    )


def milliseconds(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.0f} ms"


def factor(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def score(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


def rate(model: ModelFigures) -> str:
    return f"{model.heldout_bits_per_second:.0f} bit/s"


def millions(count: int) -> str:
    return f"{count / 1e6:.2g} million" if count >= 95_000 else f"{count:,}"


def in_words(seconds: float) -> str:
    """Seconds with a fitting unit: 8.4 s, 12.0 min, 1.5 h."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


# ---- the terminal ---------------------------------------------------------------------------------------------------


def speech_line(split: Split, data: str | None) -> str:
    seconds = sum(duration(source.cut) for source in (*split.train, *split.held_out))
    return (
        f"{data or 'the bundled synthetic set'}: {len(split.train) + len(split.held_out):,} cuts, {in_words(seconds)}, "
        f"{len(split.held_out):,} held out ({split.rule})"
    )


def tokenize_line(dataset: DatasetFigures) -> str:
    failed = f"; {dataset.quarantined:,} cuts failed" if dataset.quarantined else ""
    return (
        f"{dataset.hours:.3f} h to {dataset.tokens:,} tokens in {in_words(dataset.seconds)}, "
        f"{dataset.times_real_time:.0f} x real time; {dataset.bytes_per_hour / 1e6:.2f} MB per hour on disk, "
        f"{dataset.packed_bytes_per_hour / 1e6:.2f} bit-packed{failed}"
    )


def verify_line(dataset: DatasetFigures) -> str:
    return f"{dataset.shards:,} shards checked in {in_words(dataset.verify_seconds)}"


def resynthesis_line(codec: CodecFigures) -> str:
    return (
        f"{codec.bitrate:.0f} bit/s; encoding {codec.encode_times_real_time:.0f} x, decoding "
        f"{codec.decode_times_real_time:.0f} x real time; PESQ {score(codec.pesq_wb)}, STOI {score(codec.stoi)}"
    )


def training_begins_line(steps: int, seconds: float, precision: Choice) -> str:
    return f"a new language model for {steps:,} steps, or {seconds:g} s, in {precision.value} ({precision.reason})"


def training_line(training: TrainingFigures, models: Sequence[ModelFigures]) -> str:
    losses = ", ".join(f"{rate(model)} for “{model.name}”" for model in models)
    return (
        f"{in_words(training.seconds)}, {training.tokens_per_second:,.0f} tokens per second; training loss from "
        f"{training.train_curve[0][1]:.2f} to {training.train_curve[-1][1]:.2f} bits per token; held-out "
        f"{min(bits for _, bits in training.heldout_curve):.2f} at best, at step {training.best_step} (unigram "
        f"{training.unigram_bits_per_token:.2f}); held-out speech: {losses}"
    )


def continuation_line(figures: ContinuationFigures) -> str:
    timing = figures.timing
    return (
        f"“{figures.model}”: {timing.new_seconds:.1f} s; first audio {milliseconds(timing.first_audio_ms)} after the "
        f"prompt, real-time factor {factor(timing.real_time_factor)}"
    )
