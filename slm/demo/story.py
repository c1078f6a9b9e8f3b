"""What the demo says about its figures: the words and tables of the page, and the lines on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.sources.cuts import duration
from slm.demo.figures import (
    CodecFigures,
    ContinuationFigures,
    DatasetFigures,
    DemoFigures,
    ModelFigures,
    TrainingFigures,
)
from slm.demo.page import Clip, Continuation, LossCurve, Page, Row, Sound, Table
from slm.demo.split import Split
from tokenizer import Codec


def tell(figures: DemoFigures, continuations: Sequence[Continuation], clips: Sequence[Clip]) -> Page:
    """The demo's page. Sounds are given; every number in the text comes from the figures."""
    codec, dataset, training = figures.codec, figures.dataset, figures.training
    prompt_seconds = figures.continuations[0].timing.prompt_seconds
    return Page(
        title="Speech to tokens, tokens to speech",
        introduction=[
            f"{dataset.cuts:,} recordings of speech, {in_words(3600 * dataset.hours)} in all, went through a streaming "
            f"codec and became {dataset.tokens:,} tokens of {codec.bits_per_token} bits. They were written to shards, "
            f"read back and checked. A small language model trained on them for {in_words(training.seconds)}. Then two "
            "language models heard the beginning of a sentence and went on by themselves.",
            f"All of this took {in_words(figures.seconds)} on {figures.cpu_cores} CPU cores.",
        ],
        caveat=caveat(figures),
        headlines=[
            Row("bitrate of the codec", f"{codec.bitrate:.0f} bit/s"),
            Row("tokenizing speed", f"{dataset.times_real_time:.0f} × real time"),
            Row(f"on held-out tokens, model “{figures.shipped.name}”", rate(figures.shipped)),
            Row(
                "from the prompt's end to the first sound", milliseconds(figures.continuations[0].timing.first_audio_ms)
            ),
        ],
        continuation_text=f"Both models hear the same {prompt_seconds:.1f} s of a held-out recording "
        f"({figures.prompt}), as tokens, and sample what comes next. The dashed line is where the prompt ends; the "
        "prompt, too, is heard through the codec. Below each spectrogram are the tokens: one column each, "
        f"{codec.bits_per_token} bits from top to bottom.",
        continuations=continuations,
        resynthesis_text=f"Held-out recordings, and what is left of them after {codec.bitrate:.0f} bit/s: encoded to "
        f"{codec.token_rate:g} tokens a second and decoded again, in chunks of {codec.latency_ms:g} ms.",
        clips=clips,
        dataset_text="The shards are at once Lhotse Shar, WebDataset and Hugging Face datasets files. "
        f"Everything in them was read again and checked in {dataset.verify_seconds:.1f} s.",
        dataset=dataset_table(dataset, codec),
        training_text=f"A model of {millions(figures.fresh.parameters)} parameters started from nothing and took "
        f"{training.steps:,} steps in {in_words(training.seconds)}. Lower is better: {codec.bits_per_token} bits is "
        "knowing nothing; “unigram” knows how often each token occurs, but not what came before it. The model "
        f"that is used is that of step {training.best_step}, the best on held-out speech.",
        loss=LossCurve(
            train=training.train_curve,
            heldout=training.heldout_curve,
            levels=[("uniform", training.uniform_bits_per_token), ("unigram", training.unigram_bits_per_token)],
        ),
        figures_text="The file demo.json beside this page has them all, for programs.",
        tables=[
            codec_table(codec),
            models_table([figures.shipped, figures.fresh], training),
            *map(continuation_table, figures.continuations),
        ],
        footer=f"Made by focalstream {figures.version}.",
    )


def shown_continuation(figures: ContinuationFigures, sound: Sound, tokens: Sequence[int], codec: Codec) -> Continuation:
    """A continuation as the page shows it."""
    timing, sampling = figures.timing, figures.sampling
    return Continuation(
        title=f"Continued by the language model “{figures.model}”",
        note=f"{timing.prompt_seconds:.1f} s of prompt, {timing.new_seconds:.1f} s sampled at temperature "
        f"{sampling.temperature:g}, top-p {sampling.top_p:g}. First sound {milliseconds(timing.first_audio_ms)} after "
        f"the prompt's end; {factor(timing.real_time_factor)} s of work for a second of sound.",
        sound=sound,
        prompt_seconds=timing.prompt_seconds,
        tokens=tokens,
        token_rate=codec.token_rate,
        bits=codec.bits_per_token,
    )


def caveat(figures: DemoFigures) -> str:
    """What a listener must know before judging what they hear."""
    origin = (
        "The speech is synthetic: sentences read by espeak-ng voices, which ship with this program; no person was "
        "recorded. "
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
        "What was written",
        [
            Row("Cuts", f"{dataset.cuts:,}", f"of these held out: {dataset.heldout_cuts:,}"),
            Row("Cuts that could not be tokenized", f"{dataset.quarantined:,}"),
            Row("Audio", f"{dataset.hours:.3f} h"),
            Row("Tokens", f"{dataset.tokens:,}"),
            Row("Codes in use", f"{dataset.codes_used:,} of {dataset.codebook_size:,}"),
            Row("Shards", f"{dataset.shards:,}"),
            Row("On disk", f"{dataset.bytes_per_hour / 1e6:.2f} MB an hour", "tar, cuts and index"),
            Row(
                "Bit-packed ideal",
                f"{dataset.packed_bytes_per_hour / 1e6:.2f} MB an hour",
                f"{codec.bits_per_token} bits a token and nothing else; the shards take {overhead:.1f} times as much",
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
            Row("Tokens", f"{codec.token_rate:g} a second of {codec.bits_per_token} bits"),
            Row("Bitrate", f"{codec.bitrate:.0f} bit/s"),
            Row("Latency", f"{codec.latency_ms:g} ms", "the length of a chunk"),
            Row("Encoding", f"{codec.encode_times_real_time:.0f} × real time", threads),
            Row("Decoding", f"{codec.decode_times_real_time:.0f} × real time", threads),
            Row("PESQ wideband", score(codec.pesq_wb), "of the clips above, from 1 to 4.64"),
            Row("STOI", score(codec.stoi), "of the clips above, from 0 to 1"),
            Row("Fingerprint", codec.fingerprint[:16], "the beginning of the sha256 that names its tokens"),
        ],
    )


def models_table(models: Sequence[ModelFigures], training: TrainingFigures) -> Table:
    rows = []
    for model in models:
        rows.append(Row(f"Model “{model.name}”", rate(model), f"{millions(model.parameters)} parameters"))
    return Table(
        "Bits per second of held-out speech",
        [
            *rows,
            Row("Training speed", f"{training.tokens_per_second:,.0f} tokens a second"),
            Row("Training steps", f"{training.steps:,}", f"{training.epochs:.1f} times through the training cuts"),
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
                "First sound",
                milliseconds(timing.first_audio_ms),
                f"after the end of the prompt: encoding it {milliseconds(timing.encode_ms)}, priming the decoder "
                f"{milliseconds(timing.prime_ms)}, prefill {milliseconds(timing.prefill_ms)}",
            ),
            Row("Real-time factor", factor(timing.real_time_factor), "seconds of work per second of sound"),
            Row("Time for a chunk", " / ".join(map(milliseconds, chunk_times)), "median, 95th and 99th percentile"),
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
    """Seconds in words: 8.4 s, 12 min, 1.5 h."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


# ---- the terminal ---------------------------------------------------------------------------------------------------


def speech_line(split: Split, data: str | None) -> str:
    seconds = sum(duration(source.cut) for source in (*split.train, *split.heldout))
    return (
        f"{data or 'the bundled synthetic set'}: {len(split.train) + len(split.heldout):,} cuts, {in_words(seconds)}, "
        f"{len(split.heldout):,} held out ({split.rule})"
    )


def tokenize_line(dataset: DatasetFigures) -> str:
    failed = f"; {dataset.quarantined:,} cuts failed" if dataset.quarantined else ""
    return (
        f"{dataset.hours:.3f} h became {dataset.tokens:,} tokens in {in_words(dataset.seconds)}, "
        f"{dataset.times_real_time:.0f} x real time; {dataset.bytes_per_hour / 1e6:.2f} MB an hour on disk, "
        f"{dataset.packed_bytes_per_hour / 1e6:.2f} bit-packed{failed}"
    )


def verify_line(dataset: DatasetFigures) -> str:
    return f"{dataset.shards:,} shards read again and found sound in {in_words(dataset.verify_seconds)}"


def resynthesis_line(codec: CodecFigures) -> str:
    return (
        f"{codec.bitrate:.0f} bit/s; encoding {codec.encode_times_real_time:.0f} x, decoding "
        f"{codec.decode_times_real_time:.0f} x real time; PESQ {score(codec.pesq_wb)}, STOI {score(codec.stoi)}"
    )


def training_begins_line(steps: int) -> str:
    return f"a fresh language model for {steps:,} steps"


def training_line(training: TrainingFigures, models: Sequence[ModelFigures]) -> str:
    losses = ", ".join(f"{rate(model)} for “{model.name}”" for model in models)
    return (
        f"{in_words(training.seconds)}, {training.tokens_per_second:,.0f} tokens a second; training loss from "
        f"{training.train_curve[0][1]:.2f} to {training.train_curve[-1][1]:.2f} bits per token; held-out "
        f"{min(bits for _, bits in training.heldout_curve):.2f} at best, in step {training.best_step} (unigram "
        f"{training.unigram_bits_per_token:.2f}); a second of held-out speech takes {losses}"
    )


def continuation_line(figures: ContinuationFigures) -> str:
    timing = figures.timing
    return (
        f"“{figures.model}”: {timing.new_seconds:.1f} s; first sound {milliseconds(timing.first_audio_ms)} after the "
        f"prompt, real-time factor {factor(timing.real_time_factor)}"
    )
