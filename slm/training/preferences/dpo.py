"""Direct preference optimisation (arXiv 2305.18290, equation 7): batches of pairs and their loss.

The margin of a pair is beta times how much more likely than under the reference the chosen continuation has become,
minus the same of the rejected one. The loss is -log sigmoid(margin). The reference is the model that the run starts
from; its log-likelihoods are computed once, before the first step.

Dimension letters:  N pairs    T tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.dataset.batches import ranks_rows
from pipelines.dataset.epochs import shuffled
from slm.model.cross_entropy import IGNORED
from slm.training.preferences.records import Preference
from slm.vocabulary import PAD
from tokenizer.errors import InputError
from tokenizer.runs.ranks import Ranks

CHOSEN, REJECTED = 0, 1
PREFERENCE_STREAM = 8  # keeps the order of pairs apart from other draws of the same seed
LENGTHS = 64  # rows are padded to a multiple of this, so that compiled layers meet few shapes


class PairBatch(NamedTuple):
    """Pairs, the chosen continuation first; the prompt and the padding have no targets."""

    tokens: np.ndarray  # int64 [N, 2, T], inputs
    targets: np.ndarray  # int64 [N, 2, T], ids or IGNORED
    reference: np.ndarray  # float64 [N, 2], log-likelihoods of the continuations in nats


class PairBatches:
    """The pairs of one process: each epoch has all pairs in another order, and the batch of a step follows from it.

    Args:
        preferences: N pairs.
        reference: float64 [N, 2]; see `log_likelihoods`.
        rows: pairs of a step over all processes.
        seed: of the order.
        ranks: this process among them.

    Raises:
        InputError: the pairs of a step cannot be divided among the processes.
    """

    def __init__(
        self, preferences: Sequence[Preference], reference: np.ndarray, rows: int, seed: int, ranks: Ranks
    ) -> None:
        self._preferences, self._reference = preferences, reference
        self._rows, self._seed, self._ranks = rows, seed, ranks
        ranks_rows(rows, 0, ranks.rank, ranks.world)

    def __len__(self) -> int:
        return len(self._preferences)

    @property
    def mean_tokens(self) -> float:
        """Of a pair, both documents together."""
        return sum(len(ids) for one in self._preferences for ids in one.ids()) / len(self)

    def batch(self, step: int) -> PairBatch:
        """The pairs of this process at a step, counted from 0."""
        count, chosen = len(self._preferences), []
        for place in range(*ranks_rows(self._rows, step, self._ranks.rank, self._ranks.world)):
            epoch, number = divmod(place, count)
            chosen.append(int(shuffled(count, self._seed, epoch, PREFERENCE_STREAM)[number]))
        return self.pairs(chosen)

    def pairs(self, chosen: Sequence[int]) -> PairBatch:
        """Pairs by their numbers."""
        return padded([self._preferences[number] for number in chosen], self._reference[list(chosen)])


class PreferenceLoss:
    """-log sigmoid(margin); the items are pairs.

    Args:
        beta: the higher, the closer the model stays to the reference.
    """

    def __init__(self, beta: float) -> None:
        self._beta = beta

    def count(self, batch: PairBatch) -> int:
        return len(batch.tokens)

    def summed(self, trainee: nn.Module, part: PairBatch, bfloat16: bool) -> tuple[Tensor, dict[str, Tensor]]:
        likelihoods = pair_likelihoods(trainee, part, bfloat16)
        rewards = self._beta * (likelihoods - torch.from_numpy(part.reference).to(likelihoods))
        margins = rewards[:, CHOSEN] - rewards[:, REJECTED]
        figures = {
            "margin": margins.sum(),
            "accuracy": (margins > 0).double().sum(),
            "chosen_reward": rewards[:, CHOSEN].sum(),
            "rejected_reward": rewards[:, REJECTED].sum(),
        }
        return F.softplus(-margins).sum(), figures


def pair_likelihoods(model: nn.Module, pairs: PairBatch, bfloat16: bool) -> Tensor:
    """Log-likelihoods in nats of both continuations given the prompt, [N, 2]."""
    device = next(model.parameters()).device
    tokens, targets = (torch.from_numpy(field).to(device).flatten(0, 1) for field in (pairs.tokens, pairs.targets))
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        nats: Tensor = model(tokens, targets=targets, by_row=True)
    return -nats.unflatten(0, (-1, 2))


@torch.no_grad()
def log_likelihoods(
    model: nn.Module, preferences: Sequence[Preference], rows_at_once: int, bfloat16: bool, ranks: Ranks
) -> np.ndarray:
    """Log-likelihoods of all pairs under a model without dropout, float64 [N, 2]; each process computes its share."""
    mine = range(ranks.rank, len(preferences), ranks.world)
    found = np.zeros((len(preferences), 2))
    for first in range(0, len(mine), rows_at_once):
        some = mine[first : first + rows_at_once]
        batch = padded([preferences[number] for number in some], np.zeros((len(some), 2)))
        found[some] = pair_likelihoods(model, batch, bfloat16).double().cpu().numpy()
    return np.sum(ranks.gather(found), axis=0)


def padded(preferences: Sequence[Preference], reference: np.ndarray) -> PairBatch:
    """Pairs as a batch. The padding is at the end, where nothing that counts sees it."""
    documents = [one.ids() for one in preferences]
    longest = max(len(ids) for pair in documents for ids in pair) - 1
    shape = (len(documents), 2, -(-longest // LENGTHS) * LENGTHS)
    tokens, targets = np.full(shape, PAD, np.int64), np.full(shape, IGNORED, np.int64)
    for row, (one, pair) in enumerate(zip(preferences, documents, strict=True)):
        for side, ids in enumerate(pair):
            tokens[row, side, : len(ids) - 1] = ids[:-1]
            targets[row, side, len(one.prompt) : len(ids) - 1] = ids[len(one.prompt) + 1 :]
    return PairBatch(tokens, targets, reference)


def check_lengths(preferences: Sequence[Preference], row_tokens: int) -> None:
    """Raise InputError if a document is longer than a row."""
    for number, one in enumerate(preferences, 1):
        if (longest := max(map(len, one.ids()))) > row_tokens + 1:
            raise InputError(
                f"preference {number} has {longest} tokens with its prompt, but train.row_tokens is {row_tokens}; give "
                f"--row-tokens {longest} or draw shorter ones"
            )
