"""`eval-lm` end to end, the figures of samples, and what it refuses."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile
import torch

from pipelines.bulk.executors.inline import Inline
from pipelines.bulk.plan import Sharding
from pipelines.bulk.run import Job, tokenize
from pipelines.dataset.token_dataset import TokenDataset
from pipelines.tools.rewrite import split
from slm.checkpoint import load_lm, save_lm
from slm.cli import main
from slm.evaluation.samples import NGRAM, SampleOptions, code_figures, draw_samples, silence
from slm.model.transformer import LanguageModel, ModelConfig
from slm.vocabulary import FIRST_CODE
from tokenizer.audio import write_wav
from tokenizer.errors import InputError

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
    for words in (
        "13 cuts",
        "language model",
        "unigram",
        "bigram",
        "true continuation",
        "same gender vs another gender",
        "<i>part",
    ):
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
    assert "token errors %" in table and "wrong bits per token" in (tmp_path / "out.html").read_text()
    assert "not measured: transcripts: the model has no text" in table
    assert result["swaps"]["speaker"]["true"]["language model"]["items"] == 8
    assert result["benchmarks"]["<i>part"]["unigram"]["items"] == 4
    systems = result["samples"]["systems"]
    assert all(0 <= row["silent"] <= 1 and row["seconds"] <= 1 for row in systems.values())
    page = (tmp_path / "out.html").read_text()
    assert page.count("<audio") == 3 and page.count("data-src=") == 6
    assert page.count('aria-pressed="true" data-src=') == 3
    assert page.count(">the recording as the codec renders it</button>") == 3
    assert ">original<" not in page
    assert "&lt;i&gt;part" in page and "<i>part" not in page and "{{" not in page.split("<script>")[0]
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
    assert main([*command, "--samples", "2", "--cuts", "5", "--json", "--seed", "1", "--top-k", "1"]) == 0
    surest = json.loads(capsys.readouterr().out)["samples"]["systems"]["language model"]
    assert surest["entropy_bits"] < results[0]["samples"]["systems"]["language model"]["entropy_bits"]
    assert results[0]["cuts"] == 5


def test_refusals(command, token_dataset, spoken_dataset, random_lm, tmp_path, capsys):
    def refused(*arguments: str) -> str:
        assert main([*command, *arguments]) == 2
        return capsys.readouterr().err

    assert "expected less than 2^31" in refused("--seed", str(2**31))
    assert "--pairs is -1, expected at least 0" in refused("--pairs", "-1")
    assert "longer than the 2.6 s that the model sees" in refused("--pair-seconds", "2")
    assert "prompts of 3 s are longer than the 2.6 s" in refused("--prompt-seconds", "3")
    assert "no such folder" in refused("--samples", "0", "--benchmarks", str(tmp_path / "nosuch"))
    assert "holds no dataset.json" in refused("--data", str(tmp_path))
    assert "has codes of another codec" in refused("--codec", "small")
    assert main(["eval-lm", "--lm", "small", "--data", str(spoken_dataset)]) == 2
    assert "has codes of another codec" in capsys.readouterr().err


def test_datasets_behind_urls_come_into_the_cache(command, spoken_dataset, tmp_path, capsys):
    place, url = command.index(str(spoken_dataset)), "memory://spoken/tokens"
    files = fsspec.filesystem("memory")
    for path in filter(Path.is_file, spoken_dataset.rglob("*")):
        files.pipe(f"/spoken/tokens/{path.relative_to(spoken_dataset).as_posix()}", path.read_bytes())
    results = []
    for data in (str(spoken_dataset), url, f"file://{spoken_dataset}"):
        command[place] = data
        more = ["--baseline-data", data, "--samples", "0", "--cache", str(tmp_path / "cache"), "--json"]
        assert main([*command, *more]) == 0
        results.append(json.loads(capsys.readouterr().out))
        assert results[-1].pop("data") == [data]
    files.rm("/spoken", recursive=True)
    assert results[0] == results[1] == results[2]
    (cached,) = (tmp_path / "cache").iterdir()
    assert (cached / "shards" / "codes.000000.tar").exists()


@pytest.fixture
def packed_alone(spoken_dataset, tmp_path) -> Path:
    """Codes and nothing else of `spoken_dataset`."""
    split(spoken_dataset, tmp_path / "split", {"all": 1.0}, "cut", Sharding(cuts=5, pack=True))
    leave_out = shutil.ignore_patterns("shards", "index")
    return shutil.copytree(tmp_path / "split" / "all", tmp_path / "alone", ignore=leave_out)


def test_packed_files_alone_are_measured_but_for_the_swaps(command, packed_alone, tmp_path, capsys):
    command[command.index("--data") + 1] = str(packed_alone)
    assert main([*command, "--samples", "2", "--html", str(tmp_path / "out.html"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["cuts"] == 13 and result["likelihood"]["language model"]["bits_per_token"] > 0
    assert result["samples"]["count"] == 2 and result["swaps"] == {}
    reason = result["not_measured"]["speaker, gender, background consistency"]
    assert "cuts.000000.jsonl.gz: no such file" in reason and "copy shards/cuts.*" in reason
    assert "no such file" in (tmp_path / "out.html").read_text()


def test_no_pairs_are_made_where_none_are_asked_for(command, packed_alone, tmp_path, capsys):
    quick = ["--samples", "0", "--transcripts", "0", "--pairs", "0"]
    assert main([*command, *quick, "--pair-seconds", "9", "--html", str(tmp_path / "out.html")]) == 0
    assert "not measured: speaker, gender, background consistency: ask for them with --pairs" in capsys.readouterr().out
    assert main([*command, *quick, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["swaps"] == {} and result["settings"]["swaps"] is None


def test_a_damaged_file_of_cuts_is_refused(command, spoken_dataset, tmp_path, capsys):
    damaged = shutil.copytree(spoken_dataset, tmp_path / "damaged")
    (damaged / "shards" / "cuts.000001.jsonl.gz").write_bytes(b"junk")
    command[command.index("--data") + 1] = str(damaged)
    assert main([*command, "--samples", "0"]) == 2
    assert "cuts.000001.jsonl.gz: damaged gzip" in capsys.readouterr().err


def test_a_field_to_hold_that_no_cut_has_is_refused(command, capsys):
    assert main([*command, "--samples", "0", "--hold", "nothere"]) == 2
    said = capsys.readouterr().err
    assert "--hold is 'nothere'" in said and "such as gender, source, speaker" in said and said.count("\n") == 1
    assert main([*command, "--samples", "0", "--hold", "cut_id"]) == 2
    assert main([*command, "--samples", "0", "--hold", "source"]) == 0


@pytest.fixture
def measured_with(random_lm, spoken_dataset, tiny_codec_dir, tmp_path, capsys):
    """Run with a model of another context; the result, or the refusal."""

    def measure(context: int, *arguments: str):
        _, vocabulary = load_lm(random_lm)
        torch.manual_seed(0)
        config = ModelConfig(width=16, layers=1, heads=2, kv_heads=1, ffn_width=24, context=context)
        folder = tmp_path / f"context-{context}"
        if not folder.exists():
            save_lm(LanguageModel(config, vocabulary.size), vocabulary, folder)
        command = ["eval-lm", "--lm", str(folder), "--data", str(spoken_dataset), "--codec", str(tiny_codec_dir)]
        status = main([*command, "--pairs", "8", "--json", *arguments])
        said = capsys.readouterr()
        return json.loads(said.out) if not status else said.err

    return measure


def test_what_was_not_asked_for_gives_way_to_what_the_model_sees(measured_with):
    """At 50 tokens a second; `configs/lm/tiny.yaml` has a context of 256."""
    for context, seconds in ((512, 3.0), (256, 2.56), (101, 1.0)):
        result = measured_with(context, "--samples", "2", "--sample-seconds", "0.2")
        assert result["settings"]["swaps"]["prompt_seconds"] == seconds
        assert result["settings"]["swaps"]["continuation_seconds"] == seconds
        assert result["settings"]["samples"]["prompt_seconds"] == min(3.0, context / 50)
        assert result["swaps"]["speaker"]["true"]["language model"]["items"] == 8
    result = measured_with(64, "--samples", "2", "--sample-seconds", "0.2")
    reason = result["not_measured"]["speaker, gender, background consistency"]
    assert reason == "the model sees 1.28 s, a pair needs 2 s; allow shorter ones with --min-pair-seconds"
    assert result["likelihood"] and result["samples"]["count"] == 2


def test_shorter_pairs_where_they_are_asked_for(measured_with):
    for arguments, longest, least in (
        (["--min-pair-seconds", "0.5"], 0.64, 0.5),
        (["--pair-seconds", "0.4"], 0.4, 0.4),
        (["--pair-seconds", "0.6", "--min-pair-seconds", "0.02"], 0.6, 0.02),
    ):
        result = measured_with(64, "--samples", "0", *arguments)
        settings = result["settings"]["swaps"]
        assert (settings["prompt_seconds"], settings["continuation_seconds"]) == (longest, longest)
        assert settings["min_seconds"] == least
        assert result["swaps"]["gender"]["matched"]["language model"]["items"] > 0
    assert measured_with(512, "--samples", "0", "--min-pair-seconds", "4")["settings"]["swaps"]["min_seconds"] == 4


def test_pairs_that_were_asked_for_and_cannot_be_are_refused(measured_with):
    for arguments, words in (
        (["--pair-seconds", "1"], "longer than the 1.3 s that the model sees; give a shorter --pair-seconds"),
        (["--min-pair-seconds", "1"], "--min-pair-seconds is 1, expected at most 0.64, half of what the model sees"),
        (["--pair-seconds", "0.5", "--min-pair-seconds", "0.6"], "is 0.6, expected at most 0.5, --pair-seconds"),
        (["--min-pair-seconds", "0.01"], "--min-pair-seconds is 0.01, expected at least 0.02, one token"),
        (["--pair-seconds", "nan"], "--pair-seconds is nan, expected at least 0.02"),
        (["--pair-seconds", "inf"], "--pair-seconds is inf"),
    ):
        assert words in measured_with(64, "--samples", "0", *arguments)


def test_empty_data_is_refused(command, tiny_codec_dir, tmp_path, capsys):
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "nan.wav", np.full(8000, np.nan, np.float32), 16000, subtype="FLOAT")
    tokenize(
        Job(str(tmp_path / "audio"), tmp_path / "out", str(tiny_codec_dir), executor=Inline(), max_quarantine_rate=1)
    )
    empty = str(tmp_path / "out")
    with_no_data = [
        empty if before == "--data" else word for before, word in zip(["", *command], command, strict=False)
    ]
    for arguments in (with_no_data, [*command, "--baseline-data", empty]):
        assert main(arguments) == 2
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
    with pytest.raises(InputError, match=r"min_seconds 0\.6: expected 0 to seconds, 0\.5"):
        SampleOptions(5, 1.0, 0.5, min_seconds=0.6)
    with pytest.raises(InputError, match=r"seconds -1\.0: expected"):
        SampleOptions(5, 1.0, -1.0)


def test_samples_are_no_shorter_than_asked(spoken_dataset, random_lm, monkeypatch):
    def shortest(model, vocabulary, prompts, sampling, seeds, min_codes, max_codes):
        """A model that ends as soon as it may."""
        return iter([torch.zeros(len(prompts), dtype=torch.int64)] * min_codes)

    monkeypatch.setattr("slm.evaluation.samples.generate", shortest)
    model, vocabulary = load_lm(random_lm)
    options = SampleOptions(2, 1.0, 0.5, min_seconds=0.4)
    samples = draw_samples(model, vocabulary, TokenDataset(spoken_dataset), options)
    assert [len(sample.generated) for sample in samples] == [20, 20]


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
