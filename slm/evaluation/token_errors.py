"""How often the likeliest next code is another than the one that comes, teacher forcing: all before it is as recorded.

The share alone says little of codes that are bits, where most wrong guesses are near ones, so wrong bits are counted
too. The end is no code: it is neither guessed nor counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slm.evaluation.likelihood import Documents, Reading
from tokenizer.metrics.codes import flipped_bits


def token_errors(documents: Documents, readings: Sequence[Reading], codebook_size: int) -> dict[str, float | None]:
    """Errors of what a system expected.

    Args:
        documents: codes of each, int [T]; at least one code in all.
        readings: of the same documents.
        codebook_size: number of codes there are.

    Returns:
        token_error_rate: share of the codes that are not the likeliest one of their place; wrong_bits: bits of a code
        that the likeliest one has otherwise, in the mean, of log2(codebook_size); None where codes are not all the
        numbers of so many bits.
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
