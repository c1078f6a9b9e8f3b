"""`focalstream push FOLDER REPO`: a codec, an exported model or a dataset to the Hugging Face Hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizer import Codec

CARD = """# A streaming speech codec

{sample_rate_in} Hz in, {sample_rate_out} Hz out, {token_rate:g} tokens a second of {codebook_size:,} codes:
{bitrate:g} bit/s, {latency}. Its fingerprint is `{fingerprint}`.

```python
from tokenizer import Codec  # pip install focalstream

codec = Codec.from_pretrained("{repo}")
tokens = codec.encode(wave)  # float32 [S] at {sample_rate_in} Hz -> int64 [1, T]
wave = codec.decode(tokens)
```
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="what to upload; a codec without a card gets one")
    parser.add_argument("push", metavar="REPO", help="repository of the Hugging Face Hub: NAME or OWNER/NAME")
    parser.add_argument("--dataset", action="store_true", help="to a repository of a dataset instead of a model")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--dry-run", action="store_true", help="print what would be uploaded, offline")


def run(args: argparse.Namespace) -> int:
    from tokenizer.errors import InputError
    from tokenizer.hub import CARD as README
    from tokenizer.hub import check_push, push

    check_push(args)
    if not args.folder.is_dir():
        raise InputError(f"{args.folder}: is no folder; name the folder of a codec, an exported model or a dataset")
    tags = ["speech"]
    if not args.dataset and _is_codec(args.folder):
        from tokenizer import Codec
        from tokenizer.files import write_atomically

        tags.append("audio-codec")
        if not (args.folder / README).exists():
            text = card(Codec.from_pretrained(str(args.folder)), args.push)
            write_atomically(args.folder / README, text.encode())
            print(f"{args.folder / README}: written, as there was none")
    print(push(args.folder, args.push, tags, "dataset" if args.dataset else "model", args.private, args.dry_run))
    return 0


def card(codec: Codec, repo: str) -> str:
    """What a codec is, and how it is used."""
    return CARD.format(
        sample_rate_in=codec.sample_rate_in,
        sample_rate_out=codec.sample_rate_out,
        token_rate=codec.token_rate,
        codebook_size=codec.codebook_size,
        bitrate=codec.bitrate,
        latency=f"{codec.latency_ms:g} ms of latency" if codec.causal else "not for streaming",
        fingerprint=codec.fingerprint,
        repo=repo,
    )


def _is_codec(folder: Path) -> bool:
    """Whether the folder's config.json is a codec's."""
    config = folder / "config.json"
    return config.is_file() and '"encoder_config"' in config.read_text(encoding="utf-8", errors="replace")
