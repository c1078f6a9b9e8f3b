"""Generation on tensors: one code per step for each stream of a batch.

Each stream has its own random generator, so its output depends on its prompt and its seed, not on the other streams of
the batch (except for float32 rounding, which differs with the batch size and can change a draw on a boundary).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from slm.generation.engines import TensorModel
from slm.generation.extend import extend, framed
from slm.generation.sampling import Sampling
from slm.model.transformer import LanguageModel
from slm.vocabulary import Vocabulary


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
    tokens, lengths = framed([prompt.cpu().numpy() for prompt in prompts], vocabulary)
    drawn = extend(TensorModel(model), tokens, lengths, vocabulary.code_ids, sampling, seeds, min_codes, max_codes)
    yield from map(torch.from_numpy, drawn)
