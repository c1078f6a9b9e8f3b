"""Uploading a folder to the Hugging Face Hub in one commit: a codec, a language model or a dataset, with its card.

The card is README.md. The Hub reads what is between two lines of `---` at its beginning, the head, which is added where
a card has none.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from tokenizer.errors import InputError, first_line

CARD = "README.md"
HERE = "THIS_REPOSITORY"  # in a card: becomes the name of the repository
SHOWN = 24  # lines of a card that --dry-run prints


def add_push_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare --push, --private and --dry-run; `what` is what is uploaded, for the help."""
    parser.add_argument(
        "--push", metavar="REPO", help=f"upload {what} to this repository of the Hugging Face Hub (NAME or OWNER/NAME)"
    )
    add_upload_arguments(parser, "with --push: ")


def add_upload_arguments(parser: argparse.ArgumentParser, when: str = "") -> None:
    """Declare --license, --private and --dry-run; `when` begins their help."""
    parser.add_argument(
        "--license",
        metavar="ID",
        help=f"{when}license in the card's head, by the Hub's name for it, such as apache-2.0, cc-by-4.0 or other",
    )
    parser.add_argument("--private", action="store_true", help=f"{when}make a new repository private")
    parser.add_argument("--dry-run", action="store_true", help=f"{when}print what would be uploaded, offline")


def check_push(args: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together, or a name that no repository can have."""
    if args.push is None:
        given = {"--private": args.private, "--dry-run": args.dry_run, "--license": args.license is not None}
        option = next((name for name, value in given.items() if value), None)
        if option is not None:
            raise InputError(f"{option} is about an upload: name the repository with --push REPO, or leave it out")
        return
    _check_repository(args.push)
    if args.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", args.license):
        raise InputError(
            f"--license {args.license}: is no license of the Hub; expected small letters, digits, . and -, such as "
            "apache-2.0, cc-by-4.0 or other"
        )


def push_as_asked(
    args: argparse.Namespace,
    folder: Path,
    tags: Sequence[str],
    kind: str = "model",
    card: str | None = None,
    library: str | None = None,
) -> None:
    """`push` as the options of `add_push_arguments` say, if they do. Prints what was or would be uploaded."""
    if args.push is not None:
        print(push(folder, args.push, tags, kind, args.private, args.dry_run, card, library, args.license))


def push(
    folder: Path,
    repo: str,
    tags: Sequence[str],
    kind: str = "model",
    private: bool = False,
    dry_run: bool = False,
    card: str | None = None,
    library: str | None = None,
    license_id: str | None = None,
) -> str:
    """Upload all files of a folder, hidden ones left out. The folder stays as it is.

    Args:
        repo: NAME (of the user who is logged in) or OWNER/NAME; made if it does not exist.
        tags: added to the card, beside "focalstream", where it has no head of its own.
        kind: "model" or "dataset".
        private: whether a new repository is.
        dry_run: only say what would be uploaded.
        card: uploaded as README.md; None for that of the folder. HERE in it becomes the name of the repository.
        library: `library_name` of a head that is added: what loads the model.
        license_id: `license` of the head, also of one that is there.

    Returns:
        What to print.

    Raises:
        InputError: there is no card or nothing else, or the Hub refused.
    """
    _check_repository(repo)
    if card is None:
        if not (folder / CARD).is_file():
            raise InputError(f"{folder}: has no {CARD}, the card that the Hub shows; write one")
        card = (folder / CARD).read_text(encoding="utf-8", errors="replace")
    card = with_head(card, tags, library, license_id)
    files = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    files.pop(CARD, None)
    if not files:
        raise InputError(f"{folder}: has nothing beside {CARD} to upload")
    named = card.replace(HERE, repo)
    sizes = {CARD: len(named.encode()), **{name: path.stat().st_size for name, path in files.items()}}
    whole = f"{len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB"
    if dry_run:
        lines = [f"{size:>14,}  {name}" for name, size in sorted(sizes.items())]
        head = [f"  | {line}" for line in named.splitlines()[:SHOWN]]
        return "\n".join(
            [f"would upload to {kind} {repo}: {whole}", *lines, f"{CARD} begins:", *head, *_what_lacks(card)]
        )
    from huggingface_hub import CommitOperationAdd, HfApi

    try:
        api = HfApi()
        place = api.create_repo(repo, repo_type=kind, private=private or None, exist_ok=True)
        added = [CommitOperationAdd(CARD, card.replace(HERE, place.repo_id).encode())]
        added += [CommitOperationAdd(name, str(path)) for name, path in sorted(files.items())]
        message = f"Upload {folder.resolve().name} with focalstream"
        api.create_commit(place.repo_id, added, commit_message=message, repo_type=kind)
    except Exception as error:  # offline, no token, no rights, no room: for the user to mend
        reason = first_line(error)
        raise InputError(
            f"{repo}: the Hugging Face Hub did not take it ({reason}); log in with `hf auth login` or set HF_TOKEN, "
            "then upload with `focalstream push` (a trained language model with `export-lm --push`)"
        ) from None
    return "\n".join([f"uploaded to {place}: {whole}", *_what_lacks(card)])


def with_head(card: str, tags: Sequence[str], library: str | None = None, license_id: str | None = None) -> str:
    """A card with the head that the Hub reads. In a head of its own only the license is set, if one is given."""
    if not card.startswith("---\n"):
        library_line = "" if library is None else f"library_name: {library}\n"
        card = f"---\n{library_line}tags: {json.dumps(['focalstream', *tags])}\n---\n\n{card}"
    if license_id is None:
        return card
    head, end, body = card.removeprefix("---").partition("\n---\n")
    without = re.sub(r"\nlicense:.*(\n[ -].*)*", "", head)
    return f"---\nlicense: {license_id}{without}{end}{body}"


def _what_lacks(card: str) -> list[str]:
    """A line for the user about a head without a license."""
    if re.search(r"^license:", card.partition("\n---\n")[0], re.MULTILINE):
        return []
    return [
        f"{CARD} has no license, without which others may not use this: add --license ID (apache-2.0, cc-by-4.0, ...)"
    ]


def _check_repository(repo: str) -> None:
    """Raise InputError for a name that no repository of the Hub can have."""
    if not re.fullmatch(r"([\w.-]{1,96}/)?[\w][\w.-]{0,95}", repo) or ".." in repo or "--" in repo:
        raise InputError(f"{repo}: is no repository of the Hugging Face Hub; expected NAME or OWNER/NAME")
