"""Messages for users: the exception for wrong input, and counts in sentences."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input from the user: a missing or damaged file, a wrong rate, an unknown key, a mismatched codec.

    The message names the thing, its value, what was expected and what to do. The command line prints it as one line
    and exits with status 2; any other exception is a defect of this program and keeps its traceback.
    """


def counted(number: int, thing: str) -> str:
    """A number of things: "1 cut", "2,000 cuts"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
