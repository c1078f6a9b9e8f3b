"""What training minimises: the cross-entropy of the next token of the same document."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.batches import Batch
from slm.model import LanguageModel

IGNORED = -100  # a target that counts for nothing
NO_DOCUMENT = -1  # tokens of this document are targets of nothing


def summed_loss(model: LanguageModel, batch: Batch, bfloat16: bool) -> Tensor:
    """Cross-entropy in nats, summed over the targets of a batch."""
    device = model.embed_tokens.weight.device
    tokens, documents, positions = (torch.from_numpy(field).to(device) for field in batch)
    targets = torch.from_numpy(targets_of(batch)).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        logits = model(tokens[:, :-1], documents[:, :-1], positions[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def targets_of(batch: Batch) -> np.ndarray:
    """int64 [rows, row_tokens]: the next token, but nothing after a document's end, where the next one is unrelated."""
    same = (batch.documents[:, 1:] == batch.documents[:, :-1]) & (batch.documents[:, 1:] != NO_DOCUMENT)
    return np.where(same, batch.tokens[:, 1:], IGNORED)
