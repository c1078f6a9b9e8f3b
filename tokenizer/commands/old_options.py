"""Old spellings of options: they work for one more release, with a note on standard error."""

from __future__ import annotations

import argparse
import sys
from typing import Any


class Renamed(argparse.Action):
    """An option that has older spellings; the present one is given first: `add_argument("--data", "--train", ...)`.

    One that takes a list adds to it each time it is given, as with the action "extend".
    """

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        present = self.option_strings[0]
        if option is not None and option != present:
            note(f"{option} is now {present}; the next release drops {option}")
        if self.nargs == "+":
            values = [*(getattr(namespace, self.dest, None) or []), *values]
        setattr(namespace, self.dest, values)


def note(text: str) -> None:
    """One line to standard error."""
    print(f"note: {text}", file=sys.stderr)
