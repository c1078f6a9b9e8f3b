"""`sample-pairs`: what is preferred to what, and that the file says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.dataset.token_dataset import TokenDataset
from slm.checkpoint import load_lm
from slm.cli import main
from slm.training.preferences.records import read_preferences
from tokenizer.metrics.recogniser import Word


@pytest.fixture
def command(spoken_dataset: Path, random_lm: Path, tiny_codec_dir: Path, tmp_path: Path) -> list[str]:
    words = f"sample-pairs {tmp_path / 'pairs.jsonl'} --lm {random_lm} --data {spoken_dataset} --count 14"
    return [*words.split(), "--prompt-seconds", "1", "--sample-seconds", "0.6"]


def test_recordings_are_preferred_to_samples(command, spoken_dataset, random_lm, tmp_path):
    assert main(command) == 0
    found = read_preferences(tmp_path / "pairs.jsonl", load_lm(random_lm)[1])
    dataset = TokenDataset(spoken_dataset)
    documents = [dataset.codes(cut).astype(np.int64) for cut in range(len(dataset))]
    for one in found:
        (whole,) = (codes for codes in documents if np.array_equal(codes[:50], one.prompt))
        np.testing.assert_array_equal(one.chosen, whole[50:80])
        assert one.chosen_ends == (len(whole) <= 80) and one.rejected_ends == (len(one.rejected) < 30)
    # 12 cuts are long enough; the last two prompts are those of the first ones, with other draws.
    assert len(found) == 14 and np.array_equal(found[12].prompt, found[0].prompt)
    assert not np.array_equal(found[12].rejected, found[0].rejected)
    before = (tmp_path / "pairs.jsonl").read_bytes()
    assert main(command) == 0 and (tmp_path / "pairs.jsonl").read_bytes() == before


def test_more_sure_words_are_preferred(command, random_lm, tiny_codec, tiny_codec_dir, tmp_path, monkeypatch):
    """A recogniser that is sure of the more words, the louder the sound."""

    def recognise(wave: np.ndarray) -> list[Word]:
        return [Word("word", 0.9)] * int(1e3 * np.abs(wave).mean()) + [Word("wort", 0.1)] * len(wave)

    def loudness(prompt: np.ndarray, codes: np.ndarray) -> float:
        wave = tiny_codec.decode(torch.from_numpy(np.concatenate((prompt, codes)))[None])[0]
        after = wave[len(prompt) * 320 :]
        return int(1e3 * after.abs().mean()) / len(after) if len(codes) >= 25 else 0.0  # shorter sound has no words

    monkeypatch.setattr("tokenizer.metrics.recogniser.load_word_recogniser", lambda model: recognise)
    more = ["--prefer", "words", "--recogniser", "base", "--codec", str(tiny_codec_dir)]
    assert main([*command, *more]) == 0
    found = read_preferences(tmp_path / "pairs.jsonl", load_lm(random_lm)[1])
    assert found
    for one in found:
        assert loudness(one.prompt, one.chosen) > loudness(one.prompt, one.rejected)


def test_what_words_need_is_said(command, capsys, tmp_path):
    assert main([*command, "--prefer", "words"]) == 2
    assert "--prefer words and --recogniser MODEL go together" in capsys.readouterr().err
    assert not (tmp_path / "pairs.jsonl").exists()
