"""Messages for users: the exception for wrong input, counts in sentences, and text of the input for a terminal."""

from __future__ import annotations

import io
import logging
import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class InputError(ValueError):
    """Bad input from the user: a missing or damaged file, a wrong rate, an unknown key, a mismatched codec.

    The message names the thing, its value, what was expected and what to do. The command line prints it as one line
    and exits with status 2; any other exception is a defect of this program and keeps its traceback.

    Attributes:
        is_said: another process of this machine prints the line (`tokenizer.runs.ranks`).
    """

    is_said = False


def printable(text: str) -> str:
    """Text in which characters that a terminal would obey (control characters, changes of direction) are written out:
    `\\x1b`."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


class PrintableFormatter(logging.Formatter):
    """Log lines of which nothing commands a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class TerminalText(io.TextIOWrapper):
    """Standard output where it is a terminal: names of files and ids of cuts in it command nothing."""

    def write(self, text: str) -> int:
        return super().write(printable(text))


def counted(number: int, thing: str) -> str:
    """A number of things: "1 cut", "2,000 cuts"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
