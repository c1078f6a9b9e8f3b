"""Likelihoods of documents under a language model, and its most likely codes, for many documents at once.

A `Reader` turns documents into readings: the surprisal in bits of each code given all codes before it and of the end,
and the most likely code at each position. A `Scorer` returns only the surprisals. The language model and the baselines
are readers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from slm.generation.extend import framed
from slm.model.decoding import DecodingWeights, decode_block, make_cache
from slm.model.transformer import LanguageModel
from slm.vocabulary import EOS, FIRST_CODE, Vocabulary

Documents = Sequence[np.ndarray]  # tokens of each, int [T]
Scorer = Callable[[Documents], list[np.ndarray]]  # float64 [T + 1] each: bits of the codes and the end


class Reading(NamedTuple):
    """The predictions of a system for a document of T codes."""

    bits: np.ndarray  # float64 [T + 1]: surprisals of the codes and of the end
    likeliest: np.ndarray  # int64 [T]: the most likely code at each position, given all codes before it


Reader = Callable[[Documents], list[Reading]]

LOGITS_AT_ONCE = 1 << 24  # numbers, 64 MB
BLOCK = 256  # tokens at once in documents longer than the context


def lm_reader(model: LanguageModel, vocabulary: Vocabulary, show_progress: bool = False) -> Reader:
    """The language model as a reader. Exact at any length: documents longer than the context use the cache.

    Args:
        model: in evaluation mode.
        vocabulary: the model's. Documents with other codes raise InputError.
        show_progress: draw a bar if stderr is a terminal.
    """

    def read(documents: Documents) -> list[Reading]:
        readings: list[Any] = [None] * len(documents)
        is_long = any(len(codes) + 1 > model.config.context for codes in documents)
        weights = DecodingWeights(model) if is_long else None
        order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
        with tqdm(total=len(order), unit="cut", leave=False, disable=None if show_progress else True) as bar:
            while order:
                longest = len(documents[order[-1]]) + 1
                at_once = longest if longest <= model.config.context else BLOCK
                rows = max(1, LOGITS_AT_ONCE // (at_once * vocabulary.size))
                order, chosen = order[:-rows], order[-rows:]
                for i, found in zip(
                    chosen, _read(model, weights, vocabulary, [documents[i] for i in chosen]), strict=True
                ):
                    readings[i] = found
                bar.update(len(chosen))
        return readings

    return read


def scorer(reader: Reader) -> Scorer:
    """Only the surprisals of a reader."""
    return lambda documents: [reading.bits for reading in reader(documents)]


@torch.no_grad()
def _read(
    model: LanguageModel, weights: DecodingWeights | None, vocabulary: Vocabulary, documents: Documents
) -> list[Reading]:
    """Read one batch; `weights` are the model's, for documents longer than its context. Padding is at the end of a row,
    so attention never reaches it from a real token."""
    tokens, lengths = map(torch.from_numpy, framed([codes.astype(np.int64) for codes in documents], vocabulary))
    targets = torch.cat((tokens[:, 1:], torch.full_like(tokens[:, :1], EOS)), 1)
    targets[torch.arange(len(lengths)), lengths - 1] = EOS
    device = model.embed_tokens.weight.device
    tokens, targets = tokens.to(device), targets.to(device)
    if weights is None or tokens.shape[1] <= model.config.context:
        nats, likeliest = _judged(model(tokens), targets, vocabulary)
    else:
        cache = make_cache(model, len(documents), BLOCK)
        blocks = zip(tokens.split(BLOCK, 1), targets.split(BLOCK, 1), strict=True)
        parts = [_judged(decode_block(weights, block, cache), wanted, vocabulary) for block, wanted in blocks]
        nats, likeliest = (torch.cat(columns, 1) for columns in zip(*parts, strict=True))
    bits = (nats.double() / math.log(2)).cpu().numpy()
    codes = likeliest.cpu().numpy()
    return [Reading(bits[row, :length], codes[row, : length - 1]) for row, length in enumerate(lengths.tolist())]


def _judged(logits: Tensor, targets: Tensor, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """From logits [B, T, V] and targets [B, T]: surprisals in nats and most likely codes, [B, T] each."""
    logits = logits.float()
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    return nats, logits[..., FIRST_CODE : vocabulary.first_piece].argmax(-1)
