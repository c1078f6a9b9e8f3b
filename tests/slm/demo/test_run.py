"""`focalstream demo` from end to end on a tiny random codec and language model, and what it refuses."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import soundfile
import torch

from pipelines.dataset.token_dataset import TokenDataset
from slm.checkpoint import save_lm
from slm.cli import main
from slm.demo import stages as demo_stages
from slm.demo.run import BUNDLED, claim
from slm.demo.split import split_data, write_manifest
from slm.model.transformer import LanguageModel, ModelConfig
from slm.vocabulary import Vocabulary
from tokenizer.errors import InputError

MODEL = ModelConfig(width=16, layers=2, heads=2, kv_heads=1, ffn_width=32, context=64)


@pytest.fixture(scope="module")
def lm_dir(tiny_codec, tmp_path_factory):
    """A random language model for the tiny codec."""
    vocabulary = Vocabulary(tiny_codec.codebook_size, tiny_codec.token_rate, "tiny", tiny_codec.fingerprint)
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("lm")
    save_lm(LanguageModel(MODEL, vocabulary.size), vocabulary, folder)
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Six of the bundled cuts to train on and two held out."""
    split = split_data(str(BUNDLED))
    path = tmp_path_factory.mktemp("data") / "cuts.jsonl.gz"
    write_manifest(path, [*split.train[:6], *split.held_out[:2]])
    return path


class Listed:
    """Stands in for a TokenDataset."""

    codebook_size = 8

    def __init__(self, *cuts: list[int]) -> None:
        self.cuts = [np.array(cut, np.uint16) for cut in cuts]

    def __len__(self) -> int:
        return len(self.cuts)

    def codes(self, i: int) -> np.ndarray:
        return self.cuts[i]


def test_unigram_bits_are_those_of_counts_plus_one():
    training, held_out = Listed([0, 0, 0, 1], [1, 2]), Listed([0, 1, 7])
    expected = -np.mean(np.log2([4 / 17, 3 / 17, 1 / 17, 3 / 17]))  # of 0, 1, 7 and the end
    assert demo_stages.unigram_bits(training, held_out) == pytest.approx(expected)


def test_mean_leaves_out_what_was_not_measured():
    assert demo_stages.mean([1.0, None, 4.0]) == 2.5
    assert demo_stages.mean([None, None]) is None


def test_claim_replaces_a_demo_and_nothing_else(tmp_path):
    out = tmp_path / "deep" / "demo"
    claim(out)
    (out / "lm").mkdir()
    (out / "lm" / "run.json").write_text("{}")
    (out / "continuation-fresh.wav").write_bytes(b"old")
    (out / "notes.txt").write_text("mine")
    claim(out)
    assert {path.name for path in out.iterdir()} == {"demo.json", "notes.txt"}

    other = tmp_path / "other"
    other.mkdir()
    (other / "demo.json").write_text('{"made_by": "somebody"}')
    with pytest.raises(InputError, match="not from a demo"):
        claim(other)
    assert (other / "demo.json").read_text() == '{"made_by": "somebody"}'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "nowhere: nothing there"),
        (["--codec", "nowhere/at-all/here"], "nowhere"),
        (["--lm", "nowhere"], "nowhere"),
        (["--seconds", "0"], "seconds is 0.0"),
        (["--prompt-seconds", "nan"], "prompt_seconds is nan"),
        (["--steps", "0"], "steps is 0"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(options, message, tiny_codec_dir, lm_dir, tmp_path, capsys):
    out = tmp_path / "demo"
    status = main(["demo", "--out", str(out), "--codec", str(tiny_codec_dir), "--lm", str(lm_dir), *options])
    error = capsys.readouterr().err
    assert status == 2
    assert message in error and error.count("\n") == 1
    assert not out.exists()


def test_model_of_another_codec_is_refused(tiny_codec_dir, lm_dir, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for file in lm_dir.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    vocabulary = json.loads((other / "vocabulary.json").read_text())
    vocabulary["codec_fingerprint"] = "0" * 64
    (other / "vocabulary.json").write_text(json.dumps(vocabulary))
    status = main(["demo", "--out", str(tmp_path / "demo"), "--codec", str(tiny_codec_dir), "--lm", str(other)])
    assert status == 2
    assert "another codec" in capsys.readouterr().err


@pytest.mark.slow
def test_demo_from_speech_to_page(tiny_codec, tiny_codec_dir, lm_dir, manifest, tmp_path, capsys):
    out = tmp_path / "demo"
    options = ["--data", str(manifest), "--codec", str(tiny_codec_dir), "--lm", str(lm_dir)]
    command = ["demo", "--out", str(out), *options, "--steps", "3", "--prompt-seconds", "1", "--seconds", "0.8"]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"look        {out / 'index.html'}"

    figures = json.loads((out / "demo.json").read_text())
    assert figures["finished"]
    parts = [TokenDataset(out / "tokens" / name) for name in ("train", "heldout")]
    assert figures["dataset"]["tokens"] == sum(int(part.lengths.sum()) for part in parts)
    assert (figures["dataset"]["cuts"], figures["dataset"]["heldout_cuts"]) == (8, 2)
    written = [
        path
        for part in ("train", "heldout")
        for sub in ("shards", "index")
        for path in (out / "tokens" / part / sub).iterdir()
    ]
    on_disk = sum(path.stat().st_size for path in written if path.name != "wids.json")
    assert figures["dataset"]["bytes_per_hour"] * figures["dataset"]["hours"] == pytest.approx(on_disk)
    assert len(figures["training"]["train_curve"]) == 3
    assert figures["fresh"]["heldout_bits_per_token"] == pytest.approx(figures["training"]["heldout_curve"][-1][1])

    # 1 s is 12 whole chunks of 80 ms; what follows is exactly as long as asked for
    for item in figures["continuations"]:
        wave, rate = soundfile.read(out / item["file"], dtype="float32")
        assert len(wave) == round((0.96 + 0.8) * rate)
        assert item["timing"]["first_audio_ms"] > 0
    resynthesis, _ = soundfile.read(out / "clip-1-resynthesis.wav", dtype="float32")
    tokens = torch.from_numpy(parts[1].codes(0).astype(np.int64))
    expected = tiny_codec.decode(tokens)[0].clamp(-1, 1).numpy()[: len(resynthesis)]
    np.testing.assert_allclose(resynthesis, expected, atol=2 / 2**15)  # a step of 16 bits, and float32 rounding

    page = (out / "index.html").read_text()
    assert f"{figures['dataset']['tokens']:,} tokens" in page
    assert f"{figures['continuations'][0]['timing']['first_audio_ms']:.0f} ms" in page
    assert not re.search(
        r"\b(nan|None|inf)\b", re.sub(r'"data:[^"]*"|<style>.*?</style>|<script>.*?</script>', "", page, flags=re.S)
    )

    before = {name: (out / name).read_bytes() for name in ("continuation-shipped.wav", "continuation-fresh.wav")}
    assert main(command) == 0  # an earlier demo is replaced, and the same seed says the same
    assert {name: (out / name).read_bytes() for name in before} == before
