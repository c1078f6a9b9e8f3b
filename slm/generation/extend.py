"""Generation on NumPy arrays, with a language model of any engine: one id per step for each stream of a batch.

Legend: B streams, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from slm.generation.sampling import RandomStream, Sampling, draw, silences_after
from slm.vocabulary import BOS, EOS, FIRST_CODE, NO_CODE, PAD, Vocabulary
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from slm.generation.engines import GenerationModel


def extend(
    model: GenerationModel,
    tokens: np.ndarray,
    lengths: np.ndarray,
    allowed: range,
    sampling: Sampling,
    seeds: Sequence[int],
    least: int = 0,
    most: int | None = None,
) -> Iterator[np.ndarray]:
    """Generate ids of one kind: B streams continue with ids of `allowed` until the end token.

    Args:
        model: of any engine, in evaluation mode.
        tokens: ids of the prompts, int64 [B, T].
        lengths: of the prompts, int64 [B].
        allowed: the ids that may follow, beside the end token: codes, or pieces of text.
        sampling: for all streams.
        seeds: one per stream.
        least, most: number of ids that follow; None: until the model ends it.

    Yields:
        int64 [B]: the index in `allowed` of the next id of each stream (for example a code); -1 for ended streams.
    """
    streams = len(tokens)
    assert streams == len(seeds) > 0
    generators = [RandomStream(seed) for seed in seeds]
    recent = np.full((streams, sampling.repetition_window), PAD, dtype=np.int64)
    silences = np.zeros(streams, dtype=np.int64)
    alive = np.ones(streams, dtype=bool)
    cache = model.make_cache(streams)
    logits = model.prefill(tokens, lengths, cache)
    step = 0
    while most is None or step < most:
        choices = np.concatenate((logits[:, :FIRST_CODE], logits[:, allowed.start : allowed.stop]), axis=1)
        drawn = draw(choices, sampling, recent, generators, step >= least, silences)
        alive &= drawn != EOS
        if not alive.any():
            return
        yield np.where(alive, drawn - FIRST_CODE, NO_CODE)
        step += 1
        silences = silences_after(silences, drawn, sampling) if sampling.silence_limit else silences
        recent[:, step % sampling.repetition_window] = drawn
        ids = np.where(drawn < FIRST_CODE, drawn, drawn - FIRST_CODE + allowed.start)
        logits = model.decode_one_token(ids, cache)


def framed(prompts: Sequence[np.ndarray], vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as ids [B, longest + 1], each after a begin token, and their lengths [B]. Raises InputError."""
    lengths = np.array([len(prompt) + 1 for prompt in prompts])
    tokens = np.full((len(prompts), int(lengths.max())), PAD, dtype=np.int64)
    tokens[:, 0] = BOS
    for row, prompt in enumerate(prompts):
        if len(prompt) and not 0 <= int(prompt.min()) <= int(prompt.max()) < vocabulary.codebook_size:
            raise InputError(
                f"prompt {row} has codes from {int(prompt.min())} to {int(prompt.max())}; expected 0 to "
                f"{vocabulary.codebook_size - 1}"
            )
        tokens[row, 1 : len(prompt) + 1] = vocabulary.ids(prompt)
    return tokens, lengths
