"""The tokenizers that others load from an exported folder give the ids of the language model."""

from __future__ import annotations

import numpy as np
import pytest
import sentencepiece
from transformers import AutoTokenizer

from slm.cli import main
from slm.token_strings import codes_in, token_strings
from slm.vocabulary import BOS, EOS, FIRST_CODE, Vocabulary
from tokenizer.errors import InputError


@pytest.fixture(scope="module")
def exported(tiny_lm_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "lm"
    assert main(["export-lm", str(folder), "--lm", str(tiny_lm_dir)]) == 0
    return folder


@pytest.fixture(scope="module")
def vocabulary(exported):
    return Vocabulary.load(exported / "vocabulary.json")


def test_transformers_and_sentencepiece_read_what_they_write(exported, vocabulary):
    theirs = AutoTokenizer.from_pretrained(exported)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(exported / "tokenizer.model"))
    assert len(theirs) == pieces.vocab_size() == vocabulary.size
    assert (theirs.bos_token_id, theirs.eos_token_id, pieces.bos_id(), pieces.eos_id()) == (BOS, EOS, BOS, EOS)
    codes = np.random.default_rng(0).integers(0, vocabulary.codebook_size, 200)
    ids = vocabulary.ids(codes).tolist()
    text = "".join(f"<|c{code}|>" for code in codes)
    assert theirs(text)["input_ids"] == [BOS, *ids] and pieces.encode(text) == ids
    assert theirs(text.replace("><", "> \n<"))["input_ids"] == [BOS, *ids]
    assert theirs.decode([BOS, *ids, EOS], skip_special_tokens=True) == pieces.decode(ids) == text
    strings = token_strings(vocabulary)
    assert theirs.convert_ids_to_tokens(list(range(vocabulary.size))) == strings
    assert [pieces.id_to_piece(i) for i in range(vocabulary.size)] == strings
    assert [i for i in range(vocabulary.size) if pieces.is_control(i) or pieces.is_unknown(i)] == [*range(FIRST_CODE)]


def test_codes_are_found_wherever_their_text_is_cut():
    text = "<|c7|><|c0|> <speech><|t12|>\n<|c4095|><reserved9><eos>"
    for size in range(1, len(text) + 1):
        assert list(codes_in(text[at : at + size] for at in range(0, len(text), size))) == [7, 0, 4095]


def test_a_code_comes_out_before_the_text_goes_on():
    def texts():
        yield "<|c1|><|c"
        raise AssertionError("the next piece was asked for too early")

    assert next(codes_in(texts())) == 1


@pytest.mark.parametrize("text", ["Hello!", "<|c1|>Hello", "<|c1|><|c-2|>", "<|c1|", "<|cx|>", "x" * 1000])
def test_what_is_no_text_of_tokens_is_refused(text):
    with pytest.raises(InputError, match=r"expected tokens such as <\|c123\|>, found"):
        list(codes_in([text]))
