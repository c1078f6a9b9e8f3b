"""auto-BLEU and GenPPL of what a recogniser hears, against their definitions and with a tiny random GPT-2."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from slm.checkpoint import load_lm
from slm.cli import main
from slm.evaluation.evaluate import Options, evaluate
from slm.evaluation.lm_table import table
from slm.evaluation.samples import SampleOptions
from slm.evaluation.text_judges import auto_bleu, load_text_judge, perplexity
from tokenizer.errors import InputError
from tokenizer.metrics.recogniser import Word

WORDS = ["<end>", "one", "two", "three", "word", "wort"]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of 8 channels with random weights, and a tokenizer of whole words."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("gpt2")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(dict(zip(WORDS, range(6), strict=True)), unk_token="<end>")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=6, n_positions=12, n_embd=8, n_layer=1, n_head=2, bos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_auto_bleu_counts_what_occurs_again_in_the_same_text():
    assert auto_bleu(["one two three four"]) == 0
    assert auto_bleu(["A b a b a"]) == 1.0  # all words and all pairs
    mixed = math.sqrt(4 / 5 * 2 / 4)  # "a b" twice, and twice "a" and "b"
    assert auto_bleu(["a b c a b"]) == pytest.approx(mixed)
    assert auto_bleu(["a b c a b", "x y", "z"]) == pytest.approx(mixed / 2)  # one word has no pairs
    assert auto_bleu(["", "z"]) is None


def test_perplexity_is_that_of_the_model(gpt2):
    from transformers import GPT2LMHeadModel

    judge = load_text_judge(str(gpt2))
    model = GPT2LMHeadModel.from_pretrained(gpt2).eval()
    nats, count = 0.0, 0
    for ids in ([0, 1, 2, 3], [0, 4]):
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nats -= sum(logits[place, ids[place + 1]].item() for place in range(len(ids) - 1))
        count += len(ids) - 1
    assert perplexity(judge, ["one two three", "", "word"]) == pytest.approx(math.exp(nats / count), rel=1e-5)
    assert perplexity(judge, [" "]) is None
    assert judge(["one " * 30])[1] == 11  # what it has positions for
    with pytest.raises(InputError, match=r"--genppl .*nowhere: .*pip install transformers"):
        load_text_judge(str(gpt2 / "nowhere"))


def test_eval_lm_reports_both(gpt2, random_lm, tiny_codec, spoken_dataset: Path, monkeypatch, capsys) -> None:
    heard = [Word("word", 0.8), Word("wort", 0.2), Word("word", 0.9)]
    monkeypatch.setattr("slm.evaluation.evaluate.load_word_recogniser", lambda model: lambda wave: heard)
    samples = SampleOptions(3, 1.0, 0.6)
    options = Options([spoken_dataset], swaps="no", samples=samples, recogniser="base", genppl=str(gpt2))
    model, vocabulary = load_lm(str(random_lm), "cpu")
    result, _ = evaluate("random", model, vocabulary, tiny_codec, options)
    recorded = result["samples"]["systems"]["recordings"]
    assert recorded["auto_bleu"] == 0  # no pair of words occurs twice
    assert recorded["generation_perplexity"] == pytest.approx(
        perplexity(load_text_judge(str(gpt2)), ["word wort word"])
    )
    assert result["samples"]["texts"]["recordings"] == ["word wort word"] * 3
    assert "auto-BLEU %" in table(result) and "GenPPL" in table(result)
    assert main(["eval-lm", "--data", str(spoken_dataset), "--genppl", str(gpt2)]) == 2
    assert "it needs --recogniser MODEL" in capsys.readouterr().err
