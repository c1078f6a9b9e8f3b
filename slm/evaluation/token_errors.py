"""How often the most likely next code is wrong, with teacher forcing.

Most wrong codes differ in few bits, so the error rate alone says little, and wrong bits are counted too. The end of a
document is not a code and is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slm.evaluation.likelihood import Documents, Reading
from tokenizer.metrics.codes import flipped_bits


def token_errors(documents: Documents, readings: Sequence[Reading], codebook_size: int) -> dict[str, float | None]:
    """Errors of a system's most likely codes.

    Args:
        documents: tokens of each, int [T]; at least one in all.
        readings: of the same documents.
        codebook_size: number of codes.

    Returns:
        token_error_rate: share of codes that are not the most likely one at their position; wrong_bits: mean number of
        the log2(codebook_size) bits that differ, None if codebook_size is not a power of two.
    """
    codes, wrong, flipped, bits = 0, 0, 0, codebook_size.bit_length() - 1
    for document, reading in zip(documents, readings, strict=True):
        spoken = document.astype(np.int64)
        codes += len(spoken)
        wrong += int((spoken != reading.likeliest).sum())
        flipped += int(flipped_bits(spoken, reading.likeliest, bits).sum())
    return {
        "token_error_rate": wrong / codes,
        "wrong_bits": flipped / codes if 1 << bits == codebook_size else None,
    }
