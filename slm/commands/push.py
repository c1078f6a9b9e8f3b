"""`focalstream push FOLDER REPO`: a codec, an exported model or a dataset to the Hugging Face Hub."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.hub import add_upload_arguments

if TYPE_CHECKING:
    from tokenizer import Codec

CODEC_CARD = """# A streaming speech codec

{sample_rate_in} Hz in, {sample_rate_out} Hz out, {token_rate:g} tokens a second of {codebook_size:,} codes:
{bitrate:g} bit/s, {latency}. Its fingerprint is `{fingerprint}`.

```python
from tokenizer import Codec  # of the package focalstream
from tokenizer.audio import read_audio, write_audio

codec = Codec.from_pretrained("THIS_REPOSITORY")
wave = read_audio("IN.wav", codec.sample_rate_in)  # float32 [S], resampled to {sample_rate_in} Hz
tokens = codec.encode(wave)  # int64 [1, T]
write_audio("OUT.wav", codec.decode(tokens)[0].numpy(), codec.sample_rate_out)
```
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="what to upload; a codec or a dataset without a card gets one there"
    )
    parser.add_argument("push", metavar="REPO", help="repository of the Hugging Face Hub: NAME or OWNER/NAME")
    parser.add_argument("--dataset", action="store_true", help="to a repository of a dataset instead of a model")
    add_upload_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from pipelines.format.description import read_intact
    from pipelines.format.layout import Layout
    from pipelines.tools.hub_card import shards_card
    from slm.llama import is_llama
    from slm.publishing import LIBRARY, TAGS
    from tokenizer import Codec
    from tokenizer.errors import InputError
    from tokenizer.hub import CARD, check_push, push_as_asked

    check_push(args)
    if not args.folder.is_dir():
        raise InputError(f"{args.folder}: is no folder; name the folder of a codec, an exported model or a dataset")
    layout = Layout(args.folder)
    if layout.dataset.exists() and not args.dataset:
        raise InputError(f"{args.folder}: is a tokenized dataset; add --dataset")
    tags, card, library = ["speech"], None, None
    has_card = (args.folder / CARD).is_file()
    if args.dataset:
        if layout.dataset.exists() and not has_card:
            card = shards_card(read_intact(layout))
    elif "encoder_config" in (config := _config(args.folder)):
        tags.append("audio-codec")
        library = "focalstream"
        if not has_card:
            card = codec_card(Codec.from_pretrained(str(args.folder)))
    elif is_llama(config):
        tags, library = list(TAGS), LIBRARY
    push_as_asked(args, args.folder, tags, "dataset" if args.dataset else "model", card, library)
    return 0


def codec_card(codec: Codec) -> str:
    """What a codec is, and how it is used."""
    return CODEC_CARD.format(
        sample_rate_in=codec.sample_rate_in,
        sample_rate_out=codec.sample_rate_out,
        token_rate=codec.token_rate,
        codebook_size=codec.codebook_size,
        bitrate=codec.bitrate,
        latency=f"{codec.latency_ms:g} ms of latency" if codec.causal else "not for streaming",
        fingerprint=codec.fingerprint,
    )


def _config(folder: Path) -> dict[str, Any]:
    """The folder's config.json; empty where it has none that is a JSON object."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
