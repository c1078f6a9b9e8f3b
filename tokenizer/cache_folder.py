"""Where this program keeps what it can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path

from tokenizer.errors import InputError


def cache_folder() -> Path:
    """`focalstream` in $XDG_CACHE_HOME or ~/.cache; absolute, and not made by this.

    Raises:
        InputError: neither is set, and the user has no home.
    """
    chosen = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(chosen or Path.home() / ".cache").absolute() / "focalstream"
    except RuntimeError:  # a container with a user that is in no passwd file
        raise InputError(
            "no place for cached files: HOME is not set and this user has no home; set XDG_CACHE_HOME to a folder that "
            "may be written"
        ) from None
