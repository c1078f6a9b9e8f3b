"""Figures of a model's continuations beside those of the recordings.

Both have the same prompts and are measured in the same way, because most figures depend on the amount of speech.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipelines.dataset.epochs import shuffled
from pipelines.dataset.token_dataset import TokenDataset
from slm.generation.generate import generate
from slm.generation.sampling import Sampling
from slm.model.transformer import LanguageModel
from slm.vocabulary import Vocabulary
from tokenizer import Codec
from tokenizer.errors import InputError

SEEDS = 1_000_003  # sample i draws with seed * SEEDS + i, so the draws of two seeds do not overlap
SAMPLE_STREAM = 2  # separates the draw of the prompts from other draws of the same seed
LEAST_SECONDS = 1.0  # of a recording after its prompt, at least
NGRAM = 4  # length of the runs of codes that are checked for repetition
FRAME_SECONDS = 0.02
SILENCE_DB = 40.0  # a frame this far below the clip's loud frames is silent
SAMPLING = Sampling(top_p=0.95)
LOUD = 95  # percentile of a clip's frame levels that counts as loud


@dataclass(frozen=True)
class SampleOptions:
    """Settings of the continuations.

    Attributes:
        count: number of continuations.
        prompt_seconds: length of the prompt, from the start of a held-out cut.
        seconds: of new speech at most.
        min_seconds: of new speech at least; the model may not end it earlier.
        seed: of the prompts and the draws.
        sampling: how codes are drawn.
    """

    count: int = 16
    prompt_seconds: float = 3.0
    seconds: float = 6.0
    seed: int = 0
    sampling: Sampling = SAMPLING
    min_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 < self.prompt_seconds < math.inf or not 0 < self.seconds < math.inf:
            raise InputError(
                f"samples: count {self.count}, prompt_seconds {self.prompt_seconds}, seconds {self.seconds}: expected "
                "more than 0 of each"
            )
        if not 0 <= self.min_seconds <= self.seconds:
            raise InputError(f"samples: min_seconds {self.min_seconds}: expected 0 to seconds, {self.seconds}")


@dataclass(frozen=True)
class Sample:
    """Tokens int [T] of a prompt, of the rest of its recording, and of the model's continuation."""

    cut: int
    prompt: np.ndarray
    recorded: np.ndarray
    generated: np.ndarray


def draw_samples(
    model: LanguageModel, vocabulary: Vocabulary, dataset: TokenDataset, options: SampleOptions
) -> list[Sample]:
    """Continue the beginnings of some cuts in one batch. Raises InputError: no cut is long enough."""
    chosen = usable_cuts(dataset, options)[: options.count]
    seeds = [options.seed * SEEDS + number for number in range(len(chosen))]
    return continued(model, vocabulary, dataset, chosen, seeds, options)


def usable_cuts(dataset: TokenDataset, options: SampleOptions) -> list[int]:
    """All cuts that are long enough for a prompt and `LEAST_SECONDS` more, in an order drawn from the seed.

    Raises:
        InputError: no cut is long enough.
    """
    head = round(options.prompt_seconds * dataset.token_rate)
    usable = np.flatnonzero(dataset.lengths >= head + LEAST_SECONDS * dataset.token_rate)
    if not len(usable):
        raise InputError(
            f"no held-out cut is {options.prompt_seconds + LEAST_SECONDS:g} s long, as a prompt of "
            f"{options.prompt_seconds:g} s and {LEAST_SECONDS:g} s more need"
        )
    chosen: list[int] = usable[shuffled(len(usable), options.seed, SAMPLE_STREAM)].tolist()
    return chosen


def continued(
    model: LanguageModel,
    vocabulary: Vocabulary,
    dataset: TokenDataset,
    chosen: Sequence[int],
    seeds: Sequence[int],
    options: SampleOptions,
) -> list[Sample]:
    """Continue the beginnings of these cuts in one batch, each with its seed."""
    lengths = (options.prompt_seconds, options.min_seconds, options.seconds)
    head, least, most = (round(seconds * dataset.token_rate) for seconds in lengths)
    codes = [dataset.codes(cut).astype(np.int64) for cut in chosen]
    prompts = [torch.from_numpy(row[:head]) for row in codes]
    steps = list(generate(model, vocabulary, prompts, options.sampling, seeds, least, most))
    said = torch.stack(steps, 1).numpy() if steps else np.zeros((len(chosen), 0), np.int64)
    return [
        Sample(cut, row[:head], row[head : head + most], new[new >= 0])
        for cut, row, new in zip(chosen, codes, said, strict=True)
    ]


def code_figures(continuations: Sequence[np.ndarray], token_rate: float, most: int) -> dict[str, float | None]:
    """Figures of continuations, int [T] each, of at most `most` codes.

    Returns:
        seconds: mean length; ended: share that ended before `most`; entropy_bits: of the distribution of all codes
        together; repeated: share of codes equal to the code before; repeated_ngrams: share of runs of `NGRAM` codes
        that occurred before in the same continuation. None if there are no codes.
    """
    joined = np.concatenate(continuations)
    runs = [[tuple(codes[i : i + NGRAM].tolist()) for i in range(len(codes) - NGRAM + 1)] for codes in continuations]
    all_runs, neighbours = sum(map(len, runs)), sum(max(len(codes) - 1, 0) for codes in continuations)
    again = sum(int((codes[1:] == codes[:-1]).sum()) for codes in continuations)
    share = np.unique(joined, return_counts=True)[1] / max(len(joined), 1)
    return {
        "seconds": len(joined) / len(continuations) / token_rate,
        "ended": sum(len(codes) < most for codes in continuations) / len(continuations),
        "entropy_bits": float(-(share * np.log2(share)).sum()) if len(joined) else None,
        "repeated": again / neighbours if neighbours else None,
        "repeated_ngrams": 1 - sum(len(set(run)) for run in runs) / all_runs if all_runs else None,
    }


def decode_sample(codec: Codec, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """The decoded recording, and the prompt with the model's continuation: float32 [S] each."""
    rows = (np.concatenate((sample.prompt, codes)) for codes in (sample.recorded, sample.generated))
    recorded, generated = (codec.decode(torch.from_numpy(row)[None])[0].float().cpu().numpy() for row in rows)
    return recorded, generated


def silence(wave: np.ndarray, sample_rate: int, after: int) -> np.ndarray:
    """Which frames of 20 ms are silent: `SILENCE_DB` below the loud frames of the clip.

    Args:
        wave: float32 [S].
        sample_rate: Hz.
        after: the first sample that counts.

    Returns:
        bool [frames].
    """
    size = round(FRAME_SECONDS * sample_rate)
    frames = wave[: len(wave) // size * size].reshape(-1, size).astype(np.float64)
    level = 10 * np.log10((frames**2).mean(1) + 1e-12)
    return (level < np.percentile(level, LOUD) - SILENCE_DB)[-(-after // size) :] if len(level) else np.zeros(0, bool)


def sample_figures(samples: Sequence[Sample], token_rate: float, most: int) -> dict[str, dict[str, Any]]:
    """`code_figures` of the recordings and of the model."""
    return {
        "recordings": code_figures([sample.recorded for sample in samples], token_rate, most),
        "language model": code_figures([sample.generated for sample in samples], token_rate, most),
    }
