"""One step of training and one validation, over this process's rows and all processes' sums."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pipelines.dataset.batches import Batch, PackedBatches
from slm.documents.tasks import NO_DOCUMENT, summed_loss, targets_of
from slm.model.cross_entropy import IGNORED
from slm.training.parallel import whole, without_gradient_sync
from slm.training.settings import TrainSettings
from slm.training.spikes import Spikes
from tokenizer.errors import InputError
from tokenizer.runs.optimizers import Optimizers
from tokenizer.runs.ranks import Ranks


class StepResult(NamedTuple):
    """What a step did, over all processes."""

    nats: float  # loss per target
    norm: float  # of the gradient before clipping
    skipped: bool  # whether the weights stayed as they were; see `slm.training.spikes`
    figures: dict[str, float]  # of the loss, means


class StepLoss(Protocol):
    """What a step minimises: a mean over the items of the batch of all processes together."""

    def count(self, batch: Any) -> int:
        """The items of a batch."""

    def summed(self, trainee: nn.Module, part: Any, bfloat16: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over the items of a part of a batch, in nats, and sums of figures to log."""


class TokenLoss:
    """The cross-entropy of the next token; the items are targets."""

    def count(self, batch: Batch) -> int:
        return int((targets_of(batch) != IGNORED).sum())

    def summed(self, trainee: nn.Module, part: Batch, bfloat16: bool) -> tuple[Tensor, dict[str, Tensor]]:
        return summed_loss(trainee, part, bfloat16), {}


def train_step(
    trainee: nn.Module,
    optimizer: Optimizers,
    batch: Any,
    settings: TrainSettings,
    step: int,
    share: float = 1.0,
    ranks: Ranks = Ranks(),  # noqa: B008
    spikes: Spikes | None = None,
    objective: StepLoss = TokenLoss(),  # noqa: B008
) -> StepResult:
    """One optimizer step.

    Args:
        trainee: a model, or its distributed wrapper.
        optimizer: of its parameters.
        batch: this process's rows.
        settings: the run's.
        step: number of the step, from 0.
        share: factor on the learning rate.
        ranks: this process and the number of processes.
        spikes: decides whether the batch is skipped; None: never.
        objective: what is minimised.

    Raises:
        InputError: the gradient is not finite and the batch may not be skipped.
    """
    torch.manual_seed(settings.seed * 1_000_003 + step + (ranks.rank << 52))  # dropout; 2^52 is above all such seeds
    device = next(trainee.parameters()).device
    # The mean over processes, because gradients are averaged too. In the CPU's memory: reading it from a GPU would wait
    # for the optimizer's step before, while nothing is queued behind it.
    counted = torch.tensor(float(objective.count(batch)))
    items = max(1.0, float(ranks.mean(counted)))  # 0 if all rows lie inside documents with text
    optimizer.zero_grad()
    total = torch.zeros((), dtype=torch.float64, device=device)
    figures: dict[str, Tensor] = {}
    rows = len(batch.tokens)
    for first in range(0, rows, settings.rows_at_once):
        part = type(batch)(*(field[first : first + settings.rows_at_once] for field in batch))
        with without_gradient_sync(trainee) if first + settings.rows_at_once < rows else nullcontext():
            summed, sums = objective.summed(trainee, part, settings.bfloat16 is True)
            loss = summed / items
            loss.backward()
        total += loss.detach()
        for name, value in sums.items():
            figures[name] = figures.get(name, 0.0) + value.detach().double() / items
    nats = float(ranks.mean(total))
    means = {name: float(ranks.mean(value)) for name, value in figures.items()}
    norm = float(whole(nn.utils.clip_grad_norm_(optimizer.parameters, settings.clip_norm)))
    if (spikes or Spikes(settings)).skips(step, nats, norm):
        return StepResult(nats, norm, True, means)
    optimizer.set_rate(share)
    optimizer.step()
    return StepResult(nats, norm, False, means)


@torch.no_grad()
def validate(
    trainee: nn.Module,
    batches: PackedBatches,
    settings: TrainSettings,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> float:
    """Bits per target over the held-out rows, each document once. Processes alternate in blocks of `rows_at_once`.

    Raises:
        InputError: the rows have no targets.
    """
    trainee.eval()
    rows = min(settings.validation_rows, batches.rows_per_epoch)
    sums = torch.zeros(2, dtype=torch.float64, device=next(trainee.parameters()).device)  # of nats, and targets
    for first in range(0, rows, settings.rows_at_once * ranks.world):
        mine = first + settings.rows_at_once * ranks.rank
        start = min(mine, rows - 1)  # a process without rows computes too: FSDP needs all processes in every pass
        batch = batches.rows(start, min(start + settings.rows_at_once, rows))
        # The last row continues into the next epoch, which repeats the documents.
        batch.documents[batch.documents >= batches.documents_per_epoch] = NO_DOCUMENT
        nats = summed_loss(trainee, batch, settings.bfloat16 is True)
        if mine < rows:
            sums += torch.stack([nats.double(), sums.new_tensor(float((targets_of(batch) != IGNORED).sum()))])
    trainee.train()
    total, count = ranks.mean(sums).tolist()
    if not count:
        raise InputError(
            f"the ends of the {rows} held-out rows cut all documents with text; give a longer train.row_tokens than "
            f"{batches.row_tokens}, or more train.validation_rows"
        )
    return total / count / math.log(2)


def in_layers(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon may update a parameter: matrices of layers, not embeddings, heads or gains."""
    return name.startswith("layers.") and parameter.ndim == 2
