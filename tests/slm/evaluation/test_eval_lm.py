"""`eval-lm` end to end, the figures of samples, and what it refuses."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipelines.cli import main
from pipelines.dataset import TokenDataset
from pipelines.tokenize import Job, tokenize
from slm.checkpoint import load_lm
from slm.evaluation.samples import NGRAM, SampleOptions, code_figures, draw_samples, silence
from slm.vocabulary import FIRST_CODE
from tokenizer.audio import write_wav

SHORT = ["--pair-seconds", "1", "--prompt-seconds", "1", "--sample-seconds", "1", "--pairs", "8"]


@pytest.fixture
def command(spoken_dataset: Path, random_lm: Path, tiny_codec_dir: Path) -> list[str]:
    return ["eval-lm", "--lm", str(random_lm), "--data", str(spoken_dataset), "--codec", str(tiny_codec_dir), *SHORT]


def test_table_json_and_page(command, spoken_dataset, tmp_path, capsys):
    for number in range(4):
        for side in (0, 1):
            wave = np.random.default_rng(2 * number + side).normal(0, 0.1, 6000).astype(np.float32)
            (tmp_path / "salmon" / "<i>part").mkdir(parents=True, exist_ok=True)
            write_wav(tmp_path / "salmon" / "<i>part" / f"sample_{number}_{side}.wav", wave, 16000)
    more = ["--baseline-data", str(spoken_dataset), "--benchmarks", str(tmp_path / "salmon"), "--samples", "3"]
    files = ["--json", str(tmp_path / "out.json"), "--html", str(tmp_path / "out.html")]
    assert main([*command, *more, *files]) == 0
    table = capsys.readouterr().out
    for words in ("13 cuts", "language model", "unigram", "bigram", "true continuation", "same gender", "<i>part"):
        assert words in table
    assert "not measured: background consistency: 0 background(s)" in table
    result = json.loads((tmp_path / "out.json").read_text())
    # Random weights know nothing: about as many bits as there are ids, here 272.
    own = result["likelihood"]["language model"]
    assert own["bits_per_token"] == pytest.approx(np.log2(272), abs=0.2)
    assert own["bits_per_second"] == pytest.approx(50 * own["bits_per_token"])
    assert result["likelihood"]["bigram"]["bits_per_token"] < result["likelihood"]["unigram"]["bits_per_token"] < 8
    # The baselines were counted on these very cuts; of 256 codes a random model rarely guesses one, and half of 8 bits.
    errors = {system: row["token_error_rate"] for system, row in result["likelihood"].items()}
    assert errors["bigram"] < errors["unigram"] < 1 and errors["language model"] > 0.9
    assert own["wrong_bits"] == pytest.approx(4, abs=0.5)
    assert "token errors %" in table and "wrong bits a token" in (tmp_path / "out.html").read_text()
    assert "not measured: transcripts: the model knows no text" in table
    assert result["swaps"]["speaker"]["true"]["language model"]["items"] == 8
    assert result["benchmarks"]["<i>part"]["unigram"]["items"] == 4
    systems = result["samples"]["systems"]
    assert all(0 <= row["silent"] <= 1 and row["seconds"] <= 1 for row in systems.values())
    page = (tmp_path / "out.html").read_text()
    assert page.count("<audio") == 3 and page.count("data-src=") == 6
    assert "&lt;i&gt;part" in page and "<i>part" not in page and "$" not in page.split("<script>")[0]
    assert "http" not in page.replace("http-equiv", "")


def test_waves_are_joined_where_their_manifest_is_given(command, spoken_dataset, tmp_path, capsys):
    cuts = spoken_dataset / "shards" / "cuts.*.jsonl.gz"  # they still say where their recordings are
    assert main([*command, "--samples", "0", "--swap-audio", str(cuts), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["settings"]["swaps"]["joined"] == "waves"
    assert result["swaps"]["speaker"]["true"]["language model"]["items"] == 8
    with gzip.open(spoken_dataset / "shards" / "cuts.000000.jsonl.gz", "rt") as lines:
        (tmp_path / "cuts.jsonl").write_text(next(lines))
    assert main([*command, "--samples", "0", "--swap-audio", str(tmp_path / "cuts.jsonl")]) == 2
    assert "cuts.jsonl: has no cut clip-" in capsys.readouterr().err


def test_the_result_is_the_seeds(command, capsys):
    results = []
    for seed in ("3", "3", "4"):
        assert main([*command, "--samples", "2", "--cuts", "5", "--json", "--seed", seed]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1]
    assert results[0]["likelihood"] != results[2]["likelihood"] and results[0]["samples"] != results[2]["samples"]
    assert results[0]["cuts"] == 5


def test_refusals(command, token_dataset, spoken_dataset, random_lm, tmp_path, capsys):
    def refused(*arguments: str) -> str:
        assert main([*command, *arguments]) == 2
        return capsys.readouterr().err

    assert "expected less than 2^31" in refused("--seed", str(2**31))
    assert "--pairs is 0, expected at least 1" in refused("--pairs", "0")
    assert "longer than the 2.6 s that the model sees" in refused("--pair-seconds", "2")
    assert "prompts of 3 s are longer than the 2.6 s" in refused("--prompt-seconds", "3")
    assert "no such folder" in refused("--samples", "0", "--benchmarks", str(tmp_path / "nosuch"))
    assert "holds no dataset.json" in refused("--data", str(tmp_path))
    assert "has codes of another codec" in refused("--codec", "small")
    assert main(["eval-lm", "--lm", "small", "--data", str(spoken_dataset)]) == 2
    assert "has codes of another codec" in capsys.readouterr().err


def test_empty_data_is_refused(command, tiny_codec_dir, tmp_path, capsys):
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "nan.wav", np.full(8000, np.nan, np.float32), 16000, subtype="FLOAT")
    tokenize(
        Job(str(tmp_path / "audio"), tmp_path / "out", str(tiny_codec_dir), engine="inline", max_quarantine_rate=1)
    )
    for arguments in (["--data", str(tmp_path / "out")], ["--baseline-data", str(tmp_path / "out")]):
        assert main([*command, *arguments]) == 2
        assert "out: holds no tokens; tokenize some audio first" in capsys.readouterr().err


def test_without_its_codec_what_needs_sound_is_left_out(command, tmp_path, capsys):
    del command[command.index("--codec") : command.index("--codec") + 2]
    lm = Path(command[command.index("--lm") + 1])
    folder = tmp_path / "lm"
    folder.mkdir()
    for file in lm.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    vocabulary = json.loads((lm / "vocabulary.json").read_text())
    (folder / "vocabulary.json").write_text(json.dumps({**vocabulary, "codec_name": str(tmp_path / "gone")}))
    command[command.index("--lm") + 1] = str(folder)
    assert main([*command, "--samples", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert "silent" not in result["samples"]["systems"]["recordings"]
    assert "name it with --codec" in result["not_measured"]["silence of samples"]
    write_wav(tmp_path / "0.wav", np.zeros(3200), 16000)
    write_wav(tmp_path / "1.wav", np.ones(3200), 16000)
    assert main([*command, "--benchmarks", str(tmp_path)]) == 2
    assert "benchmarks need codec" in capsys.readouterr().err


def test_samples_follow_their_prompts(spoken_dataset, random_lm):
    model, vocabulary = load_lm(random_lm)
    dataset = TokenDataset(spoken_dataset)
    samples = draw_samples(model, vocabulary, dataset, SampleOptions(5, 1.0, 0.5, seed=2))
    assert len({sample.cut for sample in samples}) == 5
    for sample in samples:
        codes = dataset.codes(sample.cut)
        np.testing.assert_array_equal(sample.prompt, codes[:50])
        np.testing.assert_array_equal(sample.recorded, codes[50:75])
        assert len(sample.generated) <= 25 and (sample.generated < vocabulary.size - FIRST_CODE).all()


def test_code_figures():
    figures = code_figures([np.array([1, 1, 2, 3] * 3), np.array([5, 6]), np.zeros(0, int)], token_rate=2.0, most=12)
    assert NGRAM == 4
    assert figures == {
        "seconds": pytest.approx(14 / 3 / 2),
        "ended": pytest.approx(2 / 3),
        "entropy_bits": pytest.approx(-sum(p * np.log2(p) for p in (6 / 14, 3 / 14, 3 / 14, 1 / 14, 1 / 14))),
        "repeated": pytest.approx(3 / 12),
        "repeated_ngrams": pytest.approx(1 - 4 / 9),
    }
    assert code_figures([np.zeros(0, int)], 2.0, 12)["entropy_bits"] is None


def test_silence_is_told_from_sound_after_the_prompt():
    random = np.random.default_rng(0)
    wave = random.normal(0, 0.1, 48000)
    wave[24000:36000] *= 10 ** (-50 / 20)  # 50 dB below the rest
    silent = silence(wave.astype(np.float32), 16000, after=16000)
    assert len(silent) == 100
    np.testing.assert_array_equal(np.flatnonzero(silent), np.arange(25, 62 + (36000 % 320 == 0)))
