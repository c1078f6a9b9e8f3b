"""Uploading a folder to the Hugging Face Hub in one commit: a codec, a language model or a dataset, with its card.

The card is README.md. The Hub reads what is between two lines of `---` at its beginning, which is added where a card
has none.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from tokenizer.errors import InputError

CARD = "README.md"
SHOWN = 12  # lines of a card that --dry-run prints
KINDS = ("model", "dataset")


def add_push_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare --push, --private and --dry-run; `what` is what is uploaded, for the help."""
    parser.add_argument(
        "--push", metavar="REPO", help=f"upload {what} to this repository of the Hugging Face Hub (NAME or OWNER/NAME)"
    )
    parser.add_argument("--private", action="store_true", help="with --push: make a new repository private")
    parser.add_argument("--dry-run", action="store_true", help="with --push: print what would be uploaded, offline")


def check_push(args: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together, or a name that no repository can have."""
    if args.push is None:
        if args.private or args.dry_run:
            option = "--private" if args.private else "--dry-run"
            raise InputError(f"{option} is about an upload: name the repository with --push REPO, or leave it out")
        return
    check_repository(args.push)


def check_repository(repo: str) -> None:
    """Raise InputError for a name that no repository of the Hub can have."""
    if not re.fullmatch(r"([\w.-]{1,96}/)?[\w][\w.-]{0,95}", repo) or ".." in repo or "--" in repo:
        raise InputError(f"--push {repo}: is no repository of the Hugging Face Hub; expected NAME or OWNER/NAME")


def push(
    folder: Path, repo: str, tags: Sequence[str], kind: str = "model", private: bool = False, dry_run: bool = False
) -> str:
    """Upload all files of a folder, hidden ones left out.

    Args:
        folder: has the card.
        repo: NAME (of the user who is logged in) or OWNER/NAME; made if it does not exist.
        tags: added to the card, beside "focalstream", where it has no head of its own.
        kind: "model" or "dataset".
        private: whether a new repository is.
        dry_run: only say what would be uploaded.

    Returns:
        What to print.

    Raises:
        InputError: the folder has no card or nothing else, or the Hub refused.
    """
    check_repository(repo)
    if not (folder / CARD).is_file():
        raise InputError(f"{folder}: has no {CARD}, the card that the Hub shows; write one")
    files = {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    if len(files) < 2:
        raise InputError(f"{folder}: has nothing beside {CARD} to upload")
    card = with_head((folder / CARD).read_text(encoding="utf-8"), tags)
    size = sum(path.stat().st_size for path in files.values())
    whole = f"{len(files)} files, {size / 1e6:.1f} MB"
    if dry_run:
        lines = [f"{path.stat().st_size:>14,}  {name}" for name, path in files.items()]
        head = [f"  | {line}" for line in card.splitlines()[:SHOWN]]
        return "\n".join([f"would upload to {kind} {repo}: {whole}", *lines, f"{CARD} begins:", *head])
    from huggingface_hub import CommitOperationAdd, HfApi

    try:
        api = HfApi()
        place = api.create_repo(repo, repo_type=kind, private=private or None, exist_ok=True)
        added = [CommitOperationAdd(name, card.encode() if name == CARD else str(path)) for name, path in files.items()]
        api.create_commit(
            place.repo_id, added, commit_message=f"Upload {folder.resolve().name} with focalstream", repo_type=kind
        )
    except Exception as error:  # offline, no token, no rights, no room: for the user to mend
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"--push {repo}: the Hugging Face Hub did not take it ({reason}); log in with `hf auth login` or set "
            f"HF_TOKEN. {folder} holds all that was to be uploaded"
        ) from None
    return f"uploaded to {place}: {whole}"


def with_head(card: str, tags: Sequence[str]) -> str:
    """A card with the head that the Hub reads; its own if it has one."""
    if card.startswith("---\n"):
        return card
    return "---\n" + f"tags: {json.dumps(['focalstream', *tags])}\n---\n\n{card}"
