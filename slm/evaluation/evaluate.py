"""The full evaluation of a language model, as one dictionary for JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch

from pipelines.dataset.epochs import shuffled
from pipelines.dataset.token_dataset import TokenDataset
from pipelines.evaluation.clips import Clip
from pipelines.evaluation.evaluate import Sounds
from pipelines.sources.audio import read_wave
from pipelines.sources.manifests import find_inputs, read_cuts
from slm.evaluation.baselines import Counts
from slm.evaluation.benchmarks import FilePair, read_benchmark
from slm.evaluation.content import content_figures
from slm.evaluation.likelihood import Reader, Scorer, lm_reader, scorer
from slm.evaluation.pairs import Pair, accuracy
from slm.evaluation.samples import Sample, SampleOptions, decode_sample, draw_samples, sample_figures, silence
from slm.evaluation.swaps import Swap, SwapOptions, Swaps, chosen_swaps, join_codes, join_waves
from slm.evaluation.text_judges import TextJudge, load_text_judge
from slm.evaluation.token_errors import token_errors
from slm.evaluation.transcripts import error_rates, write_transcripts
from slm.generation.engines import codec_on_arrays
from slm.generation.silence import with_silent_codes
from slm.model.transformer import LanguageModel
from slm.vocabulary import Vocabulary
from tokenizer import Codec
from tokenizer.audio import read_audio
from tokenizer.errors import InputError
from tokenizer.metrics import METRICS_RATE
from tokenizer.metrics.recogniser import WordRecogniser, load_word_recogniser

LM, UNIGRAM, BIGRAM = "language model", "unigram", "bigram"
BASELINE_TOKENS = 20_000_000  # used of --baseline-data at most; more would only take memory
CUT_STREAM, BASELINE_STREAM = 3, 4  # separate draws of the same seed
RENDERED, GENERATED = "the recording as the codec renders it", "continued by the model"


@dataclass(frozen=True)
class Options:
    """What to measure; see the options of `focalstream eval-lm`."""

    data: Sequence[str | Path]  # folders and URLs
    baseline_data: Sequence[str | Path] = ()
    cache: Path | None = None  # for files behind URLs; None: the user's cache
    cuts: int = 0
    swaps: SwapOptions | str = field(default_factory=SwapOptions)  # or the reason why there are none
    swap_audio: str = ""
    samples: SampleOptions | None = None
    recogniser: str | None = None  # of the samples' words; see `tokenizer.metrics.recogniser`
    genppl: str | None = None  # a language model of text, of which they are judged; see `slm.evaluation.text_judges`
    transcripts: int = 0  # at most, of a model with text
    benchmarks: Sequence[Path] = ()
    page_clips: int = 0  # samples whose audio is kept
    seed: int = 0
    show_progress: bool = False


def evaluate(
    name: str, model: LanguageModel, vocabulary: Vocabulary, codec: Codec | None, options: Options
) -> tuple[dict[str, Any], list[Sounds]]:
    """Measure a model.

    Args:
        name: the name that the model was loaded by.
        model: in evaluation mode.
        vocabulary: the model's.
        codec: the vocabulary's; None: measurements that need audio are left out.
        options: what to measure.

    Returns:
        The result for JSON, and the audio for the page.

    Raises:
        InputError: the data has another codec or is empty, prompts are longer than the model's context, no cut has the
            field to hold, or a benchmark's folder cannot be read.
    """
    dataset = opened(options.data, vocabulary, options.cache)
    check_context(model, vocabulary, options)
    missing: dict[str, str] = {}
    swaps = chosen_swaps(dataset, options.swaps, missing)  # bad input is refused before minutes of work
    join = joiner(dataset, vocabulary, codec, options) if isinstance(options.swaps, SwapOptions) else None
    judge = None if options.genppl is None else load_text_judge(options.genppl, model.embed_tokens.weight.device)
    benchmarks = [test for folder in options.benchmarks for test in read_benchmark(folder)]
    benchmark_codec = needed(codec, "benchmarks", vocabulary) if benchmarks else None
    readers: dict[str, Reader] = {LM: lm_reader(model, vocabulary, options.show_progress)}
    counts = None
    if options.baseline_data:
        counts = count(opened(options.baseline_data, vocabulary, options.cache), options.seed)
        readers |= {UNIGRAM: counts.read_unigram, BIGRAM: counts.read_bigram}
    else:
        missing["unigram and bigram"] = "name the training data with --baseline-data"
    scorers = {system: scorer(reader) for system, reader in readers.items()}
    chosen = shuffled(len(dataset), options.seed, CUT_STREAM)[: options.cuts or None]
    documents = [dataset.codes(cut) for cut in np.sort(chosen)]
    result: dict[str, Any] = {
        "lm": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "context_seconds": model.config.context / vocabulary.token_rate,
        "codec": vocabulary.codec_name,
        "codec_fingerprint": vocabulary.codec_fingerprint,
        "data": [str(folder) for folder in options.data],
        "cuts": len(documents),
        "tokens": sum(map(len, documents)),
        "hours": sum(map(len, documents)) / vocabulary.token_rate / 3600,
        "likelihood": {system: likelihood(reader, documents, vocabulary) for system, reader in readers.items()},
        "baseline": counts and {"tokens": counts.tokens, "pseudo_count": counts.pseudo_count},
        "swaps": swap_tests(swaps, scorers, join) if join else {},
        "benchmarks": {},
        "transcripts": transcribed(model, vocabulary, dataset, options, missing),
        "samples": None,
    }
    if benchmark_codec is not None:
        result["benchmarks"] = benchmark_tests(benchmarks, scorers, benchmark_codec)
    else:
        missing["benchmarks"] = "name the folders of sWUGGY, sBLIMP, spoken StoryCloze or SALMon with --benchmarks"
    sounds: list[Sounds] = []
    if options.samples is None:
        missing["samples"] = "ask for them with --samples"
    else:
        result["samples"], sounds = sampled(model, vocabulary, codec, dataset, options, missing, judge)
    result["settings"] = {
        "seed": options.seed,
        "swaps": {**asdict(options.swaps), "joined": "waves" if options.swap_audio else "codes"}
        if isinstance(options.swaps, SwapOptions)
        else None,
        "samples": options.samples and asdict(options.samples),
        "recogniser": options.recogniser,
        "genppl": options.genppl,
    }
    result["not_measured"] = missing
    return result, sounds


def opened(folders: Sequence[str | Path], vocabulary: Vocabulary, cache: Path | None) -> TokenDataset:
    """Open a dataset of the model's codec that is not empty. Raises InputError."""
    dataset = TokenDataset(list(folders), cache)
    vocabulary.check(str(folders[0]), dataset.fingerprint, dataset.codebook_size)
    if not dataset.lengths.any():
        raise InputError(f"{folders[0]}: holds no tokens; tokenize some audio first")
    return dataset


def check_context(model: LanguageModel, vocabulary: Vocabulary, options: Options) -> None:
    """Raise InputError if a test is longer than the model's context."""
    seen = model.config.context / vocabulary.token_rate
    swaps = options.swaps
    if isinstance(swaps, SwapOptions) and swaps.prompt_seconds + swaps.continuation_seconds > seen:
        raise InputError(
            f"pairs of {swaps.prompt_seconds:g} s of prompt and {swaps.continuation_seconds:g} s of continuation are "
            f"longer than the {seen:.1f} s that the model sees; give a shorter --pair-seconds"
        )
    if options.samples is not None and options.samples.prompt_seconds > seen:
        raise InputError(
            f"prompts of {options.samples.prompt_seconds:g} s are longer than the {seen:.1f} s that the model sees; "
            "give a shorter --prompt-seconds"
        )


def count(dataset: TokenDataset, seed: int) -> Counts:
    """Count the baselines on cuts in random order until there are `BASELINE_TOKENS`."""
    order = shuffled(len(dataset), seed, BASELINE_STREAM)
    enough = int(np.searchsorted(np.cumsum(dataset.lengths[order]), BASELINE_TOKENS)) + 1
    return Counts((dataset.codes(cut) for cut in order[:enough].tolist()), dataset.codebook_size)


def likelihood(reader: Reader, documents: Sequence[np.ndarray], vocabulary: Vocabulary) -> dict[str, float | None]:
    """Bits of codes and ends, as training reports them, and errors of the most likely codes."""
    readings = reader(documents)
    bits = float(np.concatenate([reading.bits for reading in readings]).mean())
    return {
        "bits_per_token": bits,
        "bits_per_second": bits * vocabulary.token_rate,
        "perplexity": 2**bits,
        **token_errors(documents, readings, vocabulary.codebook_size),
    }


def swap_tests(
    chosen: dict[str, Swaps], scorers: dict[str, Scorer], join: Callable[[Swap], Pair]
) -> dict[str, dict[str, Any]]:
    """field -> test ("true", "matched") -> system -> accuracy."""
    found: dict[str, dict[str, Any]] = {}
    for name, swaps in chosen.items():
        tests = {"true": list(map(join, swaps.true)), "matched": list(map(join, swaps.matched))}
        found[name] = {
            test: {system: accuracy(scorer, pairs).to_dict() for system, scorer in scorers.items()}
            for test, pairs in tests.items()
            if pairs
        }
    return found


def joiner(
    dataset: TokenDataset, vocabulary: Vocabulary, codec: Codec | None, options: Options
) -> Callable[[Swap], Pair]:
    """A function from swaps to pairs: joins codes, or the audio of a manifest. Raises InputError."""
    swaps = options.swaps
    assert isinstance(swaps, SwapOptions)
    if not options.swap_audio:
        return lambda swap: join_codes(dataset, swap, swaps)
    audio_codec = needed(codec, "waves to be joined", vocabulary)
    sources = {item.cut["id"]: item for item in read_cuts(find_inputs(options.swap_audio))}

    def wave_of(cut: int) -> np.ndarray:
        name = dataset.cut_id(cut)
        if name not in sources:
            raise InputError(
                f"{options.swap_audio}: has no cut {name}; give the manifest that the data was tokenized from"
            )
        return read_wave(sources[name], audio_codec.sample_rate_in)

    return lambda swap: join_waves(dataset, swap, swaps, audio_codec, wave_of)


def needed(codec: Codec | None, what: str, vocabulary: Vocabulary) -> Codec:
    """The codec. Raises InputError if it was not found."""
    if codec is None:
        raise InputError(f"{what} need codec '{vocabulary.codec_name}', which was not found; name it with --codec")
    return codec


def benchmark_tests(
    benchmarks: Sequence[tuple[str, list[FilePair]]], scorers: dict[str, Scorer], codec: Codec
) -> dict[str, dict[str, Any]]:
    """test -> system -> accuracy. Subsets of a benchmark are tests too."""
    found: dict[str, dict[str, Any]] = {}
    for name, files in benchmarks:
        pairs = [encoded(codec, pair) for pair in files]
        subsets = {"": pairs}
        for subset in sorted({pair.subset for pair in files} - {""}):
            subsets[subset] = [p for p, file in zip(pairs, files, strict=True) if file.subset == subset]
        for subset, members in subsets.items():
            found[f"{name}, {subset}" if subset else name] = {
                system: accuracy(scorer, members).to_dict() for system, scorer in scorers.items()
            }
    return found


def encoded(codec: Codec, pair: FilePair) -> Pair:
    """Encode the two recordings of a pair."""
    waves = (torch.from_numpy(read_audio(path, codec.sample_rate_in)) for path in (pair.better, pair.worse))
    better, worse = (codec.encode(wave)[0].cpu().numpy() for wave in waves)
    return Pair(better, worse, item=pair.item)


def transcribed(
    model: LanguageModel, vocabulary: Vocabulary, dataset: TokenDataset, options: Options, missing: dict[str, str]
) -> dict[str, Any] | None:
    """Error rates and texts of transcripts, or None with the reason in `missing`."""
    if vocabulary.text is None:
        missing["transcripts"] = "the model has no text (docs/text.md)"
    elif not options.transcripts:
        missing["transcripts"] = "ask for them with --transcripts"
    else:
        try:
            found = write_transcripts(model, vocabulary, vocabulary.text, dataset, options.transcripts, options.seed)
        except InputError as error:
            missing["transcripts"] = str(error)
            return None
        return {
            "count": len(found),
            **error_rates(found, vocabulary.text),
            "texts": [{"cut": dataset.cut_id(one.cut), "said": one.text, "written": one.written} for one in found],
        }
    return None


def sampled(
    model: LanguageModel,
    vocabulary: Vocabulary,
    codec: Codec | None,
    dataset: TokenDataset,
    options: Options,
    missing: dict[str, str],
    judge: TextJudge | None = None,
) -> tuple[dict[str, Any] | None, list[Sounds]]:
    """Figures of samples, with silence if there is a codec, with their texts if there is a recogniser, and the audio of
    the first samples."""
    assert options.samples is not None
    wanted = options.samples
    if wanted.sampling.silence_limit:
        arrays = codec_on_arrays(needed(codec, "limits of silence", vocabulary))
        wanted = replace(wanted, sampling=with_silent_codes(wanted.sampling, arrays))
    try:
        samples = draw_samples(model, vocabulary, dataset, wanted)
    except InputError as error:
        missing["samples"] = str(error)
        return None, []
    most = round(options.samples.seconds * vocabulary.token_rate)
    figures = sample_figures(samples, vocabulary.token_rate, most)
    sounds: list[Sounds] = []
    texts: dict[str, list[str]] = {}
    if codec is None:
        missing["silence of samples"] = f"needs codec '{vocabulary.codec_name}'; name it with --codec"
    else:
        recogniser = word_recogniser(options.recogniser, missing)
        silent: dict[str, list[np.ndarray]] = {system: [] for system in figures}
        spoken: dict[str, list[np.ndarray]] = {system: [] for system in figures}
        for sample in samples:
            waves = decode_sample(codec, sample)
            after = len(sample.prompt) * codec.samples_per_token
            for system, wave in zip(figures, waves, strict=True):
                silent[system].append(silence(wave, codec.sample_rate_out, after))
                spoken[system].append(soxr.resample(wave[after:], codec.sample_rate_out, METRICS_RATE))
            if len(sounds) < options.page_clips:
                sounds.append(heard(codec, dataset, sample, waves))
        for system, frames in silent.items():
            joined = np.concatenate(frames)
            figures[system]["silent"] = float(joined.mean()) if len(joined) else None
            if recogniser is not None:
                of_words, texts[system] = content_figures(recogniser, spoken[system], judge)
                figures[system] |= of_words
    return {"count": len(samples), "systems": figures, **({"texts": texts} if texts else {})}, sounds


def word_recogniser(model: str | None, missing: dict[str, str]) -> WordRecogniser | None:
    """The recogniser of the samples' words; None, with the reason in `missing`, without one."""
    if model is None:
        missing["words of samples"] = "name a recogniser with --recogniser, such as base"
        return None
    try:
        return load_word_recogniser(model)
    except InputError as error:
        missing["words of samples"] = str(error)
        return None


def heard(codec: Codec, dataset: TokenDataset, sample: Sample, waves: tuple[np.ndarray, np.ndarray]) -> Sounds:
    """A sample for the page."""
    at_16k = [soxr.resample(wave, codec.sample_rate_out, METRICS_RATE) for wave in waves]
    clip = Clip(dataset.cut_id(sample.cut), "prompt and continuation", "", False, at_16k[0])
    return Sounds(clip, {RENDERED: at_16k[0], GENERATED: at_16k[1]})


def share_of_unigram(result: dict[str, Any]) -> float | None:
    """Bits of the model divided by bits of the unigram; None without a unigram."""
    found = result["likelihood"]
    if UNIGRAM not in found or not math.isfinite(found[UNIGRAM]["bits_per_token"]):
        return None
    return found[LM]["bits_per_token"] / found[UNIGRAM]["bits_per_token"]
