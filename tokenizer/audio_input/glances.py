"""Whether a file is one stream, by a few looks into it: the numbers of its pages or frames rise from look to look.

Looks lie 1.5 times as far from the beginning each time. Where another stream begins between two of them, the second
number counts from there, over at most half of what the first counts from the beginning; so it is the smaller one,
unless the bit rate falls to half there. The last look is at the end.
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
