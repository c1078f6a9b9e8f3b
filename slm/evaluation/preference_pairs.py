"""Preferences drawn with a model: which of two continuations of a held-out prompt is the better one.

Either a recording's own continuation is preferred to one by the model, or of two by the model the one in which a
recogniser is sure of more words a second (`slm.evaluation.content`).
"""

from __future__ import annotations

from collections.abc import Iterator

import soxr
from tqdm import tqdm

from pipelines.dataset.token_dataset import TokenDataset
from slm.evaluation.content import listen, word_figures
from slm.evaluation.samples import SEEDS, Sample, SampleOptions, continued, decode_sample, usable_cuts
from slm.model.transformer import LanguageModel
from slm.training.preferences.records import Preference
from slm.vocabulary import Vocabulary
from tokenizer import Codec
from tokenizer.metrics import METRICS_RATE
from tokenizer.metrics.recogniser import WordRecogniser

AT_ONCE = 32  # prompts continued in one batch


def recorded_over_sampled(
    model: LanguageModel, vocabulary: Vocabulary, dataset: TokenDataset, options: SampleOptions, show_progress: bool
) -> Iterator[Preference]:
    """Each recording's own continuation over one by the model.

    Raises:
        InputError: no cut is long enough.
    """
    for (sample,) in _samples(model, vocabulary, dataset, options, 1, show_progress):
        if len(sample.generated):
            yield Preference(
                sample.prompt,
                sample.recorded,
                sample.generated,
                *(_ends(sample, dataset), _ended(sample, dataset, options)),
            )


def more_words(
    model: LanguageModel,
    vocabulary: Vocabulary,
    dataset: TokenDataset,
    options: SampleOptions,
    codec: Codec,
    recogniser: WordRecogniser,
    show_progress: bool,
) -> Iterator[Preference]:
    """Of two continuations by the model, the one with more sure words a second over the other; no pair where equal.

    Raises:
        InputError: no cut is long enough.
    """
    for samples in _samples(model, vocabulary, dataset, options, 2, show_progress):
        scores = [_sure_words(codec, recogniser, sample) for sample in samples]
        if scores[0] == scores[1]:
            continue
        chosen, rejected = samples if scores[0] > scores[1] else samples[::-1]
        ends = (_ended(sample, dataset, options) for sample in (chosen, rejected))
        if len(chosen.generated) and len(rejected.generated):
            yield Preference(chosen.prompt, chosen.generated, rejected.generated, *ends)


def _samples(
    model: LanguageModel,
    vocabulary: Vocabulary,
    dataset: TokenDataset,
    options: SampleOptions,
    each: int,
    show_progress: bool,
) -> Iterator[tuple[Sample, ...]]:
    """`each` continuations of every prompt; the prompts begin `options.count` cuts, in more than one round if there
    are fewer."""
    cuts = usable_cuts(dataset, options)
    with tqdm(total=options.count, unit="prompt", leave=False, disable=None if show_progress else True) as bar:
        for first in range(0, options.count, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, options.count))
            chosen = [cuts[number % len(cuts)] for number in numbers]
            drawn = []
            for turn in range(each):
                seeds = [options.seed * SEEDS + number * each + turn for number in numbers]
                drawn.append(continued(model, vocabulary, dataset, chosen, seeds, options))
            yield from zip(*drawn, strict=True)
            bar.update(len(numbers))


def _sure_words(codec: Codec, recogniser: WordRecogniser, sample: Sample) -> float:
    """Sure words a second of a continuation, after its prompt; 0 where there is no sound."""
    wave = decode_sample(codec, sample)[1][len(sample.prompt) * codec.samples_per_token :]
    wave = soxr.resample(wave, codec.sample_rate_out, METRICS_RATE)
    figures = word_figures([listen(recogniser, wave)], len(wave))
    return figures["sure_words_per_second"] or 0.0


def _ends(sample: Sample, dataset: TokenDataset) -> bool:
    """Whether the recording ends where the sample's part of it does."""
    return len(sample.prompt) + len(sample.recorded) == int(dataset.lengths[sample.cut])


def _ended(sample: Sample, dataset: TokenDataset, options: SampleOptions) -> bool:
    """Whether the model ended its continuation."""
    return len(sample.generated) < round(options.seconds * dataset.token_rate)
