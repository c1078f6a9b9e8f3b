"""How unlikely a language model finds documents of codes, many of them at a time.

A `Scorer` turns documents into surprisals in bits: one for each code, given all before it, and one for the end. The
language model is one, the baselines are others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from slm.decoding import DecodingWeights, decode_block, make_cache
from slm.generate import framed
from slm.model import LanguageModel
from slm.vocabulary import EOS, Vocabulary

Documents = Sequence[np.ndarray]  # codes of each, int [T]
Scorer = Callable[[Documents], list[np.ndarray]]  # float64 [T + 1] of each: bits of its codes and of its end

LOGITS_AT_ONCE = 1 << 24  # numbers, 64 MB
BLOCK = 256  # tokens at once of a document that is longer than the context


def lm_scorer(model: LanguageModel, vocabulary: Vocabulary, show_progress: bool = False) -> Scorer:
    """The language model as a scorer, exact at any length: what is longer than the context goes through the cache.

    Args:
        model: in evaluation mode.
        vocabulary: the model's. A document with a code that it does not have raises InputError.
        show_progress: draw a bar when stderr is a terminal.
    """

    def score(documents: Documents) -> list[np.ndarray]:
        bits: list[Any] = [None] * len(documents)
        order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
        with tqdm(total=len(order), unit="cut", leave=False, disable=None if show_progress else True) as bar:
            while order:
                longest = len(documents[order[-1]]) + 1
                at_once = longest if longest <= model.config.context else BLOCK
                rows = max(1, LOGITS_AT_ONCE // (at_once * vocabulary.size))
                order, chosen = order[:-rows], order[-rows:]
                for i, found in zip(
                    chosen, _surprisals(model, vocabulary, [documents[i] for i in chosen]), strict=True
                ):
                    bits[i] = found
                bar.update(len(chosen))
        return bits

    return score


@torch.no_grad()
def _surprisals(model: LanguageModel, vocabulary: Vocabulary, documents: Documents) -> list[np.ndarray]:
    """One batch. Padding comes last in its row, where nothing that counts can see it."""
    tokens, lengths = framed([torch.from_numpy(codes.astype(np.int64)) for codes in documents], vocabulary)
    targets = torch.cat((tokens[:, 1:], torch.full_like(tokens[:, :1], EOS)), 1)
    targets[torch.arange(len(lengths)), lengths - 1] = EOS
    device = model.embed_tokens.weight.device
    tokens, targets = tokens.to(device), targets.to(device)
    if tokens.shape[1] <= model.config.context:
        nats = _cross_entropy(model(tokens), targets)
    else:
        weights, cache = DecodingWeights(model), make_cache(model, len(documents), BLOCK)
        blocks = zip(tokens.split(BLOCK, 1), targets.split(BLOCK, 1), strict=True)
        nats = torch.cat([_cross_entropy(decode_block(weights, block, cache), wanted) for block, wanted in blocks], 1)
    rows = (nats.double() / math.log(2)).cpu().numpy()
    return [row[:length] for row, length in zip(rows, lengths.tolist(), strict=True)]


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
