"""Words of other packages' errors."""

import pytest

from tokenizer.errors import first_line


@pytest.mark.parametrize("text", ["no network", " no network\ntry again", "no network\r\ntry again\r\n"])
def test_the_first_line_of_an_error(text):
    assert first_line(ValueError(text)) == "no network"


def test_an_error_without_words_is_named():
    assert first_line(ValueError(" \n")) == "ValueError"
