"""Generation: sampling, and one code per step for each stream of a batch.

Each stream has its own random generator, so its output depends on its prompt and its seed, not on the other streams of
the batch (except for float32 rounding, which differs with the batch size and can change a draw on a boundary).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from slm.generation import extend as extension
from slm.generation.engines import TensorModel
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
    ids, counts = tokens.cpu().numpy(), lengths.cpu().numpy()
    drawn = extension.extend(TensorModel(model), ids, counts, allowed, sampling, seeds, least, most)
    yield from map(torch.from_numpy, drawn)


def framed(prompts: Sequence[Tensor], vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Prompts as ids [B, longest + 1], each after a begin token, and their lengths [B]. Raises InputError."""
    tokens, lengths = extension.framed([prompt.cpu().numpy() for prompt in prompts], vocabulary)
    return torch.from_numpy(tokens), torch.from_numpy(lengths)
