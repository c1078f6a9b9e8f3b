"""`train-codec` resumes and takes settings as `train-lm` does; its old spellings work, with a note."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from slm.cli import main
from tokenizer import Codec

STAGE = {"steps": 2, "batch_size": 2, "crop_seconds": 0.48, "learning_rate": 1e-3, "bfloat16": False, "save_every": 1}


@pytest.fixture
def words(write_manifest, speech, tiny_codec, tmp_path: Path) -> list[str]:
    """A command without its input, of two steps of the decoder."""
    config = tmp_path / "tiny.yaml"
    losses = {"adversarial": 0, "feature_matching": 0}
    stage = STAGE | {"schedule": "cosine", "losses": losses}
    config.write_text(yaml.safe_dump({"model": tiny_codec.config.to_dict(), "stages": {"tune": stage}}))
    write_manifest({name: speech(index, 1.0) for index, name in enumerate("ab")})
    return ["train-codec", "--config", str(config), "--out", str(tmp_path / "run"), "--threads", "1"]


def steps(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "tune" / "log.jsonl").read_text().splitlines()]


def test_a_run_resumes_and_may_be_longer(words, tmp_path, capsys) -> None:
    words += ["--data", str(tmp_path / "audio")]
    assert main([*words, "--resume"]) == 2
    assert "holds no training run; start without --resume" in capsys.readouterr().err
    assert main(words) == 0
    assert not capsys.readouterr().err.count("note:")
    assert main([*words, "--resume", "--steps", "4"]) == 0
    assert "note:" not in capsys.readouterr().err
    assert steps(tmp_path / "run") == [1, 2, 3, 4]
    assert json.loads((tmp_path / "run/tune/run.json").read_text())["train"]["steps"] == 4
    assert main([*words, "--resume", "--learning-rate", "2e-3"]) == 2
    assert "other settings (train.learning_rate)" in capsys.readouterr().err


def test_old_spellings_work_with_a_note(words, tmp_path, capsys, tiny_codec_dir) -> None:
    words += ["--train", str(tmp_path / "audio"), "--init", str(tiny_codec_dir)]
    assert main(words) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert notes == [
        "note: --train is now --data; the next release drops --train",
        "note: --init is now --init-from; the next release drops --init",
    ]
    assert main([*words, "--steps", "3"]) == 0  # without --resume
    error = capsys.readouterr().err
    assert f"note: {tmp_path / 'run'} holds a training run, which is resumed" in error
    assert steps(tmp_path / "run") == [1, 2, 3]


def test_a_run_from_before_a_setting_has_its_default(words, tmp_path, capsys) -> None:
    words += ["--data", str(tmp_path / "audio")]
    assert main(words) == 0
    record = tmp_path / "run/tune/run.json"
    stored = json.loads(record.read_text())
    del stored["train"]["freeze"], stored["train"]["binarise"]
    record.write_text(json.dumps(stored))
    assert main([*words, "--resume", "--no-binarise"]) == 2
    assert "other settings (train.binarise)" in capsys.readouterr().err
    assert main([*words, "--resume", "--steps", "3"]) == 0


def test_every_kind_of_setting_has_an_option(words, tmp_path, capsys) -> None:
    given = ["--data", str(tmp_path / "audio"), "--epochs", "0.5", "--crop-seconds", "none", "--no-bfloat16"]
    given += ["--losses", "multi_mel=2", "mel=0", "--freeze", "decoder.backbone", "--validate-every", "none"]
    assert main([*words, *given, "--model", "encoder_config.window_size=16", "--adversary-width", "0.1"]) == 0
    stored = json.loads((tmp_path / "run/tune/run.json").read_text())
    expected = {"steps": 0, "epochs": 0.5, "crop_seconds": None, "bfloat16": False, "freeze": ["decoder.backbone"]}
    expected |= {"losses": {"multi_mel": 2.0}, "validate_every": None, "adversary_width": 0.1}
    assert {name: stored["train"][name] for name in expected} == expected
    assert Codec.from_pretrained(tmp_path / "run/tune/codec").config.encoder.window_size == 16


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--model", "dim=3"], "--model dim=3: expected SECTION.KEY=VALUE"),
        (["--model", "encoder_config.dims=3"], "encoder_config: unknown key 'dims'"),
        (["--losses", "mel"], "--losses mel: expected KEY=VALUE"),
        (["--losses", "sound=1"], "stages.tune.losses: 'sound' is unknown"),
        (["--freeze", "ears"], "stages.tune.freeze: the model has no part 'ears'"),
        (["--teacher", "layer=1"], "teacher: unknown key 'layer'"),
    ],
)
def test_a_setting_that_is_not_there_is_named(words, tmp_path, capsys, options, text) -> None:
    assert main([*words, "--data", str(tmp_path / "audio"), *options]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
