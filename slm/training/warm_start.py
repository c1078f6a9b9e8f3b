"""Initial weights from another model: a text Llama, or a speech model.

As in TWIST (arXiv 2305.13009), the layers are kept and the embedding is replaced for our vocabulary. New rows are drawn
from a normal distribution with the mean and the variances of the old rows. The begin and end tokens take the rows of
the old begin and end tokens, if these are known. A speech model of the same codec keeps its rows, except those of
pieces of text if its text model is a different one. So does, when asked for, a speech model of a related codec: one
that was trained on from the other's weights, so that most bits of its codes still mean what they did.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slm.checkpoint import check_fit, copy_weights, locate, parse_config, read_json
from slm.llama import HEAD, is_llama, model_config, own_names
from slm.model.transformer import LanguageModel, ModelConfig
from slm.vocabulary import BOS, EOS, Vocabulary
from tokenizer.checkpoint import read_weights
from tokenizer.errors import InputError

EMBEDDING = "embed_tokens.weight"
GROUP_HEAD = "lm_head.first.weight"
FREE = {"context", "dropout"}  # fields that no weight depends on


def warm_start(model: LanguageModel, vocabulary: Vocabulary, name: str, seed: int, related_codec: bool = False) -> bool:
    """Fill a new model with the weights of another. Arguments, result and errors are those of `warm_weights`."""
    weights, is_whole = warm_weights(model, vocabulary, name, seed, related_codec)
    copy_weights(model, weights)
    return is_whole


def warm_weights(
    model: LanguageModel, vocabulary: Vocabulary, name: str, seed: int, related_codec: bool
) -> tuple[dict[str, Tensor], bool]:
    """The weights of another model for a new one. Those that are not drawn anew stay in their file until they are read.

    Args:
        model: its configuration must equal the other's, except `context` and `dropout`; it may be on the meta device.
        vocabulary: the new model's.
        name: a folder in transformers' layout (one or several safetensors files), or a name for `load_lm`.
        seed: of the random rows.
        related_codec: keep the rows of the codes also if the other model's codec is a different one.

    Returns:
        The weights by name, and whether all rows of the vocabulary are the other model's, so that none is random.

    Raises:
        InputError: there is no such model, it is not a Llama, its shape differs, or it has no codes that can be kept.
    """
    folder = locate(name)
    path = folder / "config.json"
    raw = read_json(path)
    theirs = model_config(raw, path) if is_llama(raw) else parse_config(raw, path)
    check_shape(model.config, theirs, name)
    weights = _weights(folder)
    if is_llama(raw):
        weights = own_names(weights, theirs.tied_embeddings)
    kept = _shared_vocabulary(folder, vocabulary, related_codec)
    is_whole = kept is not None and kept.text == vocabulary.text
    if not is_whole:
        known: dict[int, Any] = {BOS: raw.get("bos_token_id", BOS), EOS: raw.get("eos_token_id", EOS)}
        for number, table in enumerate((EMBEDDING, HEAD, GROUP_HEAD)):
            if table in weights:
                rows = vocabulary.size
                if kept is not None:  # the pieces are the last rows of these tables
                    same = len(weights[table]) - kept.pieces
                    known, rows = dict(zip(range(same), range(same), strict=True)), same + vocabulary.pieces
                weights[table] = new_rows(weights[table].float(), rows, known, seed + number)
    check_fit(model, weights, folder)
    return weights, is_whole


def check_shape(ours: ModelConfig, theirs: ModelConfig, name: str) -> None:
    """Raise InputError if the configuration does not fit the weights; the message says what it should be."""
    if "bits" not in (ours.code_embedding, theirs.code_embedding):
        ours = dataclasses.replace(
            ours, code_embedding=theirs.code_embedding
        )  # tables differ only in their initial values
    fields = [field.name for field in dataclasses.fields(ModelConfig) if field.name not in FREE]
    if odd := [field for field in fields if getattr(ours, field) != getattr(theirs, field)]:
        wanted = ", ".join(f"{field}: {getattr(theirs, field)}" for field in odd)
        raise InputError(
            f"--init-from {name}: its shape differs from the config's `model` section; set there: {wanted}"
        )


def new_rows(old: Tensor, rows: int, known: dict[int, Any], seed: int) -> Tensor:
    """A table of `rows` random rows with the distribution of the old ones.

    Args:
        old: float32 [V, D].
        rows: number of new rows.
        known: new row -> the old row that it copies; entries that are not an old row are drawn like the others.
        seed: of the draws.

    Returns:
        float32 [rows, D].
    """
    drawn = torch.randn(rows, old.shape[1], generator=torch.Generator().manual_seed(seed))
    table = old.mean(0) + drawn * old.std(0, correction=0)
    for row, source in known.items():
        source = source[0] if isinstance(source, list) and source else source  # Llama 3 has several end tokens
        if isinstance(source, int) and 0 <= source < len(old):
            table[row] = old[source]
    return table


def _shared_vocabulary(folder: Path, vocabulary: Vocabulary, related_codec: bool) -> Vocabulary | None:
    """The vocabulary of the folder's model if its rows of codes can be kept: it has the same or a related codec.

    Raises:
        InputError: `related_codec`, and the model has no codes, or their number or rate differs from ours.
    """
    if not (folder / "vocabulary.json").is_file():
        if related_codec:
            raise InputError(
                f"{folder}: is not a speech model, so it has no codes that --related-codec could keep; leave the "
                "option out"
            )
        return None
    theirs = Vocabulary.load(folder / "vocabulary.json")
    if not related_codec:
        ours = (vocabulary.codec_fingerprint, vocabulary.codebook_size)
        return theirs if (theirs.codec_fingerprint, theirs.codebook_size) == ours else None
    if (theirs.codebook_size, theirs.token_rate) != (vocabulary.codebook_size, vocabulary.token_rate):
        raise InputError(
            f"{folder}: has {theirs.codebook_size} codes at {theirs.token_rate:g} a second (codec "
            f"'{theirs.codec_name}'), the datasets have {vocabulary.codebook_size} at {vocabulary.token_rate:g}; "
            "codecs of different sizes or rates are not related: leave --related-codec out"
        )
    return theirs


def _weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of model.safetensors, or of the several files of a large model."""
    if (folder / "model.safetensors").is_file():
        return read_weights(folder / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise InputError(
            f"{folder}: has no model.safetensors; convert the model with `save_pretrained` of transformers"
        )
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{index}: has no weight_map; copy the folder again") from None
    weights: dict[str, Tensor] = {}
    for file in names:
        if not (folder / file).is_file() or (folder / file).resolve().parent != folder.resolve():
            raise InputError(f"{index}: names {file}, which is not in its folder; copy the folder again")
        weights |= read_weights(folder / file)
    return weights
