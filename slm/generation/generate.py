"""Generation: sampling, and one code per step for each stream of a batch.

Each stream has its own random generator, so its output depends on its prompt and its seed, not on the other streams of
the batch (except for float32 rounding, which differs with the batch size and can change a draw on a boundary).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slm.model.decoding import DecodingWeights, decode_one_token, make_cache, prefill
from slm.model.transformer import LanguageModel
from slm.vocabulary import BOS, EOS, FIRST_CODE, NO_CODE, PAD, Vocabulary
from tokenizer.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How the next token is sampled. Filters apply in the order of these fields.

    Raises:
        InputError: a value is out of range.
    """

    repetition_penalty: float = 1.0  # multiplies the log-probabilities of recent codes; 1: off
    repetition_window: int = 50  # codes that count as recent
    temperature: float = 1.0  # 0: always the most likely
    top_k: int = 0  # keep the k most likely; 0: off
    top_p: float = 1.0  # keep the most likely that together reach this probability; 1: off
    min_p: float = 0.0  # keep those with at least this share of the highest probability; 0: off

    def __post_init__(self) -> None:
        for name, fits, expected in (
            ("repetition_penalty", 1 <= self.repetition_penalty < math.inf, "at least 1, and finite"),
            ("repetition_window", self.repetition_window >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "at least 0, and finite"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
        ):
            if not fits:
                raise InputError(f"{name} is {getattr(self, name)}; expected {expected}")


def generate(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompts: Sequence[Tensor],
    sampling: Sampling,
    seeds: Sequence[int],
    min_codes: int = 0,
    max_codes: int | None = None,
) -> Iterator[Tensor]:
    """Continue prompts, one code per step; close the iterator to cancel.

    Memory does not grow with the number of steps: the cache is a ring of the latest `context` tokens.

    Args:
        model: in evaluation mode.
        vocabulary: the model's.
        prompts: the tokens of each of B streams, int64 [T_b]; may be empty.
        sampling: for all streams.
        seeds: one per stream.
        min_codes: codes of a stream before it may end.
        max_codes: codes of a stream at most; None: until the model ends it.

    Yields:
        int64 [B]: the next code of each stream; -1 for streams that have ended. Stops when all have ended.

    Raises:
        InputError: a prompt has codes that the vocabulary does not have.
    """
    yield from extend(model, *framed(prompts, vocabulary), vocabulary.code_ids, sampling, seeds, min_codes, max_codes)


def extend(
    model: LanguageModel,
    tokens: Tensor,
    lengths: Tensor,
    allowed: range,
    sampling: Sampling,
    seeds: Sequence[int],
    least: int = 0,
    most: int | None = None,
) -> Iterator[Tensor]:
    """`generate` for ids of one kind: B streams continue with ids of `allowed` until the end token.

    Args:
        model: in evaluation mode.
        tokens: ids of the prompts, int64 [B, T].
        lengths: of the prompts, int64 [B].
        allowed: the ids that may follow, beside the end token: codes, or pieces of text.
        sampling, seeds: as in `generate`.
        least, most: number of ids that follow.

    Yields:
        int64 [B]: the index in `allowed` of the next id of each stream (for example a code); -1 for ended streams.
    """
    device = model.embed_tokens.weight.device
    streams = len(tokens)
    assert streams == len(seeds) > 0
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    recent = torch.full((streams, sampling.repetition_window), PAD)
    alive = torch.ones(streams, dtype=torch.bool)
    weights, cache = DecodingWeights(model), make_cache(model, streams)
    logits = prefill(weights, tokens.to(device), lengths.to(device), cache)
    step = 0
    while most is None or step < most:
        choices = torch.cat((logits[:, :FIRST_CODE], logits[:, allowed.start : allowed.stop]), dim=1).cpu()
        drawn = draw(choices, sampling, recent, generators, may_end=step >= least)
        alive &= drawn != EOS
        if not alive.any():
            return
        yield torch.where(alive, drawn - FIRST_CODE, NO_CODE)
        step += 1
        recent[:, step % sampling.repetition_window] = drawn
        ids = torch.where(drawn < FIRST_CODE, drawn, drawn - FIRST_CODE + allowed.start)
        logits = decode_one_token(weights, ids.to(device), cache)


def framed(prompts: Sequence[Tensor], vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Prompts as ids [B, longest + 1], each after a begin token, and their lengths [B]. Raises InputError."""
    lengths = torch.tensor([len(prompt) + 1 for prompt in prompts])
    tokens = torch.full((len(prompts), int(lengths.max())), PAD)
    tokens[:, 0] = BOS
    for row, prompt in enumerate(prompts):
        if len(prompt) and not 0 <= int(prompt.min()) <= int(prompt.max()) < vocabulary.codebook_size:
            raise InputError(
                f"prompt {row} has codes from {int(prompt.min())} to {int(prompt.max())}; expected 0 to "
                f"{vocabulary.codebook_size - 1}"
            )
        tokens[row, 1 : len(prompt) + 1] = vocabulary.ids(prompt)
    return tokens, lengths


def draw(
    logits: Tensor, sampling: Sampling, recent: Tensor, generators: Sequence[torch.Generator], may_end: bool
) -> Tensor:
    """Draw the next id of each stream: a code, or the end token where it may end.

    Args:
        logits: [B, V], of the special tokens followed by the codes (or other allowed ids).
        sampling: the filters.
        recent: int64 [B, W], the latest ids of each stream (`PAD` before its first).
        generators: one per stream, on the CPU; each gives one number.
        may_end: whether the end token may be drawn.

    Returns:
        int64 [B].
    """
    allowed = torch.zeros(logits.shape[1], dtype=torch.bool)
    allowed[FIRST_CODE:] = True
    allowed[EOS] = may_end
    probabilities = filtered(logits.double().masked_fill(~allowed, -torch.inf), sampling, recent)
    # Inverse of the cumulative distribution: an id of probability 0 has an empty interval and is never drawn.
    cumulative = probabilities.cumsum(-1)
    drawn = torch.cat([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
    return torch.searchsorted(cumulative, (drawn * cumulative[:, -1])[:, None], right=True)[:, 0]


def filtered(logits: Tensor, sampling: Sampling, recent: Tensor) -> Tensor:
    """Probabilities [B, V] after all filters; they need not sum to 1."""
    scores = logits.log_softmax(-1)
    if sampling.repetition_penalty != 1:
        repeated = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, recent, True)
        scores = torch.where(repeated, scores * sampling.repetition_penalty, scores)
    if sampling.temperature == 0:
        return torch.zeros_like(scores).scatter_(1, scores.argmax(-1, keepdim=True), 1.0)
    # Relative to the highest score, so that a temperature near 0 does not make all scores minus infinity.
    probabilities = ((scores - scores.amax(-1, keepdim=True)) / sampling.temperature).softmax(-1)
    if 0 < sampling.top_k < probabilities.shape[1]:
        least = probabilities.topk(sampling.top_k).values[:, -1:]
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    if sampling.top_p < 1:
        # On a CPU, NumPy sorts such rows many times faster than PyTorch.
        ranked = torch.from_numpy(np.sort(probabilities.numpy(), axis=-1)[:, ::-1].copy())
        before = ranked.cumsum(-1) - ranked
        # An id is kept if the ids before it have not reached top_p, so the first always is.
        kept = (before < sampling.top_p * ranked.sum(-1, keepdim=True)).sum(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < ranked.gather(1, kept - 1), 0.0)
    if sampling.min_p > 0:
        likeliest = probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < sampling.min_p * likeliest, 0.0)
    return probabilities
