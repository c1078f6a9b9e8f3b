"""What training minimises: the cross-entropy of the next token of the same document."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.dataset.batches import Batch
from slm.model.cross_entropy import IGNORED
from slm.vocabulary import INTERLEAVED, SPEECH, TEXT

NO_DOCUMENT = -1  # tokens of this document are targets of nothing


def summed_loss(model: nn.Module, batch: Batch, bfloat16: bool) -> Tensor:
    """Cross-entropy in nats, summed over the targets of a batch.

    Args:
        model: a `LanguageModel`, or what distributes one over processes.
        batch: rows of the loader.
        bfloat16: compute under autocast.
    """
    device = next(model.parameters()).device
    tokens, documents, positions = (torch.from_numpy(field[:, :-1]).to(device) for field in batch)
    targets = torch.from_numpy(targets_of(batch)).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        loss: Tensor = model(tokens, documents, positions, targets)
    return loss


def targets_of(batch: Batch) -> np.ndarray:
    """int64 [rows, row_tokens]: the next token, but nothing after a document's end, where the next one is unrelated, no
    mark of a part, and of documents of two parts the answer alone (`slm.documents.tasks`)."""
    same = (batch.documents[:, 1:] == batch.documents[:, :-1]) & (batch.documents[:, 1:] != NO_DOCUMENT)
    marks = (batch.tokens == TEXT) | (batch.tokens == SPEECH) | (batch.tokens == INTERLEAVED)
    if marks.any():
        # After one mark comes the question, after the second the answer; `<interleaved>` counts as two.
        count = np.cumsum(marks + (batch.tokens == INTERLEAVED), axis=1)
        begins = np.arange(count.shape[1]) - batch.positions
        in_document = count - np.take_along_axis(count, begins.clip(0), axis=1)
        question = (in_document == 1) & (begins >= 0)  # what goes on here of two parts is no document
        same &= ~(question | marks)[:, 1:]
    return np.where(same, batch.tokens[:, 1:], IGNORED)
