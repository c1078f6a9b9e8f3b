"""Transcripts of held-out speech: which cuts, what is written, and the error rates of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.dataset.token_dataset import TokenDataset
from slm.checkpoint import save_lm
from slm.cli import main
from slm.evaluation.transcripts import GREEDY, Transcript, error_rates, write_transcripts
from slm.generation.spoken_text import transcribe
from slm.model.transformer import LanguageModel, ModelConfig
from slm.text_model import TextModel, texts_of
from slm.vocabulary import Vocabulary
from tests.slm.conftest import sentences
from tokenizer.errors import InputError


@pytest.fixture(scope="module")
def text_model() -> TextModel:
    return TextModel.train(sentences(200), 60)


class Texted:
    """Cuts of random codes in memory; every third one has no text, the second is as long as the model's context."""

    def __init__(self) -> None:
        random = np.random.default_rng(2)
        self.lengths = random.integers(5, 40, 12)
        self.lengths[1] = 92
        self._codes = [random.integers(0, 64, n).astype(np.uint16) for n in self.lengths]
        self.texts = ["" if i % 3 == 0 else text for i, text in enumerate(sentences(12, seed=6))]

    def codes(self, i: int) -> np.ndarray:
        return self._codes[i]

    def cuts(self) -> list[dict]:
        return [{"supervisions": [{"text": text}] if text else []} for text in self.texts]


def writer(text_model: TextModel, context: int = 96) -> tuple[LanguageModel, Vocabulary]:
    torch.manual_seed(1)
    vocabulary = Vocabulary(64, 50.0, "some/codec", "ab" * 32, text_model)
    config = ModelConfig(width=16, layers=1, heads=2, kv_heads=1, ffn_width=24, context=context)
    model = LanguageModel(config, vocabulary.size, vocabulary.pieces).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    return model, vocabulary


def test_cuts_with_a_text_that_fit_are_written_down_greedily(text_model):
    model, vocabulary = writer(text_model)
    dataset = Texted()
    fit = [i for i in range(12) if i % 3 and i != 1]
    found = write_transcripts(model, vocabulary, text_model, dataset, 100, seed=0)
    assert [transcript.cut for transcript in found] == fit
    for cut, text, written in found:
        assert text == dataset.texts[cut]
        assert written == transcribe(model, vocabulary, text_model, dataset.codes(cut).astype(np.int64), GREEDY)
    chosen = [
        [transcript.cut for transcript in write_transcripts(model, vocabulary, text_model, dataset, 4, seed)]
        for seed in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2] and len(set(chosen[0])) == 4 and set(chosen[0]) <= set(fit)
    with pytest.raises(InputError, match="no held-out cut has a text and fits the 5 tokens"):
        write_transcripts(*writer(text_model, context=5), text_model, dataset, 4, 0)


def test_error_rates_are_of_all_transcripts_together(text_model):
    said, written = ["The quick fox.", "lazy dogs jump", ""], ["the quick", "lazy dog jump over", "fox"]
    transcripts = [Transcript(i, *pair) for i, pair in enumerate(zip(said, written, strict=True))]
    rates = error_rates(transcripts, text_model)
    assert rates["words"] == 6
    assert rates["word_error_rate"] == pytest.approx((1 + 2 + 1) / 6)
    assert rates["character_error_rate"] == pytest.approx((len(" fox") + len("s") + len(" over") + 3) / (13 + 14))
    assert error_rates([Transcript(0, text, text) for text in said], text_model)["piece_error_rate"] == 0
    longer = [Transcript(0, text, f"{text} fox") for text in ("the quick", "lazy dogs")]
    pieces = [len(text_model.encode(text)) for text in ("fox", "the quick", "lazy dogs")]
    assert error_rates(longer, text_model)["piece_error_rate"] == pytest.approx(2 * pieces[0] / sum(pieces[1:]))
    assert error_rates([Transcript(0, "...", "fox")], text_model)["word_error_rate"] is None


def test_eval_lm_shows_transcripts_of_a_model_with_text(texted_dataset, text_model, tmp_path, capsys, monkeypatch):
    dataset = TokenDataset(texted_dataset)
    vocabulary = Vocabulary(dataset.codebook_size, 50.0, str(tmp_path / "gone"), dataset.fingerprint, text_model)
    torch.manual_seed(0)
    config = ModelConfig(width=16, layers=1, heads=2, kv_heads=1, ffn_width=24, context=128)
    save_lm(LanguageModel(config, vocabulary.size, vocabulary.pieces), vocabulary, tmp_path / "lm")
    command = ["eval-lm", "--lm", str(tmp_path / "lm"), "--data", str(texted_dataset), "--pair-seconds", "1"]
    command += ["--samples", "0"]
    files = ["--json", str(tmp_path / "out.json"), "--html", str(tmp_path / "out.html")]
    assert main([*command, "--transcripts", "3", *files]) == 0
    table = capsys.readouterr().out
    assert "3 transcripts" in table and "piece errors %" in table and "word errors %" in table
    result = json.loads(Path(tmp_path / "out.json").read_text())["transcripts"]
    texts = list(texts_of(dataset.cuts()))
    assert result["count"] == len(result["texts"]) == 3 and result["piece_error_rate"] > 0.5
    assert all(one["said"] in texts and one["cut"].startswith("c") for one in result["texts"])
    page = Path(tmp_path / "out.html").read_text()
    assert page.count("<dt>transcript</dt>") == 3 and "<h2>Transcription</h2>" in page and "#transcripts" in page
    monkeypatch.setattr("slm.evaluation.transcripts.transcribe", lambda *_: " ")
    assert main([*command, "--transcripts", "3", *files]) == 0
    assert Path(tmp_path / "out.html").read_text().count("<dt>transcript</dt><dd>(nothing)</dd>") == 3
    assert main([*command, "--transcripts", "0"]) == 0
    assert "not measured: transcripts: ask for them with --transcripts" in capsys.readouterr().out
    assert main([*command, "--transcripts", "-1"]) == 2
    assert "--transcripts is -1, expected at least 0" in capsys.readouterr().err
