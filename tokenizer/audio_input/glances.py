"""Whether a file is one stream, by a few looks into it: the numbers of its pages or frames rise from look to look.

Each look is 1.5 times as far from the beginning as the one before; the last one is at the end. Pages and frames are
numbered from the beginning of their stream. If another stream begins between two looks, the number at the second look
counts at most half as many bytes as the number at the first. So it is the smaller one, unless the bit rate of the
second stream is less than half.
"""

from __future__ import annotations

from collections.abc import Callable

from tokenizer.audio_input.byte_source import ByteSource

LOOK_BYTES = 1 << 16  # in which a page or a frame begins
SHORT_BYTES = 1 << 13  # of the first try, in which one often begins
SMALL_BYTES = 4 * LOOK_BYTES  # of files that are better read whole
STEP = 1.5


def is_one_stream(
    source: ByteSource, begins_in: Callable[[bytes], bool], number_in: Callable[[bytes], int | None]
) -> bool:
    """Whether no look shows another stream.

    Args:
        begins_in: whether a stream begins in some bytes.
        number_in: the first number in some bytes; None where there is none.
    """
    looks, at = [], LOOK_BYTES
    while at < source.size - LOOK_BYTES:
        looks.append(at)
        at = int(at * STEP)
    if begins_in(source.read_at(0, LOOK_BYTES)[1:]):  # behind the first byte, with which the first stream begins
        return False
    last = -1
    for at in (*looks, source.size - LOOK_BYTES):
        size = SHORT_BYTES if at in looks else LOOK_BYTES
        while (number := number_in(data := source.read_at(at, size))) is None and size < LOOK_BYTES:
            size *= 2
        if number is None or number < last or begins_in(data):
            return False
        last = number
    return True
