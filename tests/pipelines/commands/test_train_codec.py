"""`train-codec` and `eval-codec` say in one line what is wrong with a cut or an option."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.sources.audio import read_wave
from pipelines.sources.cuts import SourceCut
from slm.cli import main
from tokenizer.errors import InputError

CONFIG = Path(__file__).resolve().parents[3] / "configs/codec/small.yaml"


def commands(manifest, codec, out):
    """Both commands on one manifest."""
    return {
        "train-codec": ["train-codec", "--config", str(CONFIG), "--data", str(manifest), "--out", str(out)],
        "eval-codec": ["eval-codec", "--codec", str(codec), "--manifest", str(manifest), "--min-seconds", "0"],
    }


def test_read_wave_is_the_whole_cut(write_manifest, speech):
    wave = speech(3, 1.3)
    line = json.loads(write_manifest({"a": wave}).read_text())
    line["recording"]["sources"][0]["source"] = str(write_manifest({"a": wave}).parent / "audio/0.wav")
    np.testing.assert_array_equal(read_wave(SourceCut(line), 16000), wave)


@pytest.mark.parametrize("name", ["train-codec", "eval-codec"])
@pytest.mark.parametrize("damage", ["missing", "no audio", "cut off"])
def test_a_cut_that_cannot_be_read(write_manifest, speech, tmp_path, capsys, tiny_codec_dir, name, damage):
    manifest, path = write_manifest({"a cut": speech(0, 0.5)}), tmp_path / "audio/0.wav"
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(b"this is no audio" if damage == "no audio" else content[:1000])
    assert main(commands(manifest, tiny_codec_dir, tmp_path / "out")[name]) == 2
    error = capsys.readouterr().err
    assert f"cut a cut ({path})" in error and "mend its audio or remove it from the manifest" in error


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("train-codec", ["--threads", "-1"], "--threads -1 and --workers 0: expected 0 or more"),
        ("train-codec", ["--device", "gramophone"], "device 'gramophone' cannot be used"),
        ("eval-codec", ["--threads", "-1"], "--threads is -1, expected at least 1"),
        ("eval-codec", ["--per-source", "-1"], "--per-source is -1, expected 0 (all clips) or more"),
        ("eval-codec", ["--threads", "0"], "--threads is 0, expected at least 1"),
    ],
)
def test_bad_options_are_one_line(write_manifest, speech, tmp_path, capsys, tiny_codec_dir, name, options, words):
    manifest = write_manifest({"a": speech(0, 0.5)})
    assert main([*commands(manifest, tiny_codec_dir, tmp_path / "out")[name], *options]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_cut_far_too_loud_is_refused(write_manifest, speech, tmp_path):
    line = json.loads(write_manifest({"a": speech(0, 0.5) * np.float32(1e30)}).read_text())
    line["recording"]["sources"][0]["source"] = str(tmp_path / "audio/0.wav")
    with pytest.raises(InputError, match="not audio, a sample is"):
        read_wave(SourceCut(line), 16000)
