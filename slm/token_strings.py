"""Ids as strings, and the tokenizer files by which other programs know them.

A code is written `<|c123|>`, a piece of text `<|t45|>`, the special ids `<pad>`, `<bos>`, ...; a text of them has no
spaces. AutoTokenizer, vLLM and SGLang read tokenizer.json, a vocabulary of whole words; llama.cpp reads
tokenizer.model, the same vocabulary as a SentencePiece model.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Iterator

from slm.vocabulary import BOS, EOS, FIRST_CODE, PAD, Vocabulary
from tokenizer.errors import InputError

SPECIAL = ("<pad>", "<bos>", "<eos>", "<text>", "<speech>", "<interleaved>", "<unk>")
UNKNOWN = 6  # a reserved id, which no model has seen; stands for text that is none of these strings
LONGEST = 32  # characters of a token; text with more before its next `>` does not consist of tokens
_CODE = re.compile(r"<\|c(\d+)\|>")
_OTHER = re.compile(r"<\w+>|<\|t\d+\|>")


def token_strings(vocabulary: Vocabulary) -> list[str]:
    """The string of every id, in order."""
    reserved = [f"<reserved{i}>" for i in range(len(SPECIAL), FIRST_CODE)]
    codes = [f"<|c{code}|>" for code in range(vocabulary.codebook_size)]
    return [*SPECIAL, *reserved, *codes, *(f"<|t{piece}|>" for piece in range(vocabulary.pieces))]


def codes_in(texts: Iterable[str]) -> Iterator[int]:
    """The codes in a text that comes in pieces, cut anywhere; each as soon as it is complete. Other tokens are skipped.

    Raises:
        InputError: the text does not consist of tokens.
    """
    held = ""
    for text in texts:
        *whole, held = (held + text).split(">")
        for token in (part.strip() + ">" for part in whole):
            if match := _CODE.fullmatch(token):
                yield int(match[1])
            elif not _OTHER.fullmatch(token):
                raise _no_tokens(token)
        if len(held) > LONGEST:
            raise _no_tokens(held)
    if held.strip():
        raise _no_tokens(held)


def _no_tokens(text: str) -> InputError:
    return InputError(f"expected tokens such as <|c123|>, found {text[:LONGEST]!r}")


def tokenizer_files(vocabulary: Vocabulary, context: int) -> dict[str, bytes]:
    """The content of tokenizer.json, tokenizer_config.json and tokenizer.model, by name.

    Args:
        context: tokens that the model sees at a time.
    """
    strings = token_strings(vocabulary)
    special = {"bos_token": strings[BOS], "eos_token": strings[EOS], "pad_token": strings[PAD]}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "unk_token": strings[UNKNOWN],
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    return {
        "tokenizer.json": _json(_word_level(strings)),
        "tokenizer_config.json": _json(config),
        "tokenizer.model": _sentence_pieces(strings),
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode("ascii")


def _word_level(strings: list[str]) -> dict[str, object]:
    """tokenizer.json of the library `tokenizers`: a text is split before each `<`, and begins with <bos>."""
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    begin = {"SpecialToken": {"id": strings[BOS], "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": strings[i], **added} for i in range(FIRST_CODE)],
        "normalizer": {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": ""},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "<[^<>]*>"},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {strings[BOS]: {"id": strings[BOS], "ids": [BOS], "tokens": [strings[BOS]]}},
        },
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {string: i for i, string in enumerate(strings)},
            "unk_token": strings[UNKNOWN],
        },
    }


# Of sentencepiece_model.proto: the types of a piece, the kinds of model.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_BPE = 2


def _sentence_pieces(strings: list[str]) -> bytes:
    """A serialised SentencePiece `ModelProto`: every string is a piece that is never divided."""
    pieces = b"".join(
        _field(1, _field(1, string.encode()) + _field(2, 0.0) + _field(3, _piece_type(i)))
        for i, string in enumerate(strings)
    )
    ids = ((40, UNKNOWN), (41, BOS), (42, EOS), (43, PAD))
    trainer = _field(3, _BPE) + _field(4, len(strings))
    trainer += b"".join(_field(number, i) + _field(number + 5, strings[i].encode()) for number, i in ids)
    normalizer = _field(1, b"identity") + b"".join(_field(number, 0) for number in (3, 4))  # no spaces are added
    return pieces + _field(2, trainer) + _field(3, normalizer)


def _piece_type(i: int) -> int:
    if i == UNKNOWN:
        return _UNKNOWN
    return _CONTROL if i < FIRST_CODE else _USER_DEFINED


def _field(number: int, value: bytes | float | int) -> bytes:
    """A field of a protocol buffer: a number, a float of 32 bits, or bytes."""
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low]) if not rest else bytes([low | 0x80]) + _varint(rest)
