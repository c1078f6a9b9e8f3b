"""What `plan` says beforehand is what tokenizing then makes."""

import json

import pytest

from pipelines.format.description import read_description
from pipelines.format.layout import Layout
from slm.cli import main


@pytest.mark.parametrize("size", [["--shard-cuts", "5"], ["--shard-hours", "0.003"]])
def test_the_estimate_is_what_comes(audio_folder, tiny_codec_dir, tmp_path, capsys, size):
    options = ["--codec", str(tiny_codec_dir), "--pack", "--min-seconds", "0.5", *size]
    assert main(["plan", str(audio_folder), *options, "--rate", "100", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert main(["tokenize", str(audio_folder), str(tmp_path / "out"), *options, "--executor", "inline"]) == 0
    description = read_description(Layout(tmp_path / "out"))
    totals = description.totals
    assert [planned[key] for key in ("cuts", "skipped", "tokens")] == [
        getattr(totals, key) for key in ("cuts", "skipped", "tokens")
    ]
    assert planned["hours"] == pytest.approx(totals.hours, abs=1e-6)
    assert planned["shards"] == len(description.shards) > 1
    assert planned["tar_bytes"] == size_of(description, "codes.", ".tar")
    assert planned["index_bytes"] == size_of(description, "codes.", ".npy") + size_of(description, "codes.", ".idx")
    # Small shards compress worse than all cuts at once, which the sample here is.
    assert planned["cuts_bytes"] == pytest.approx(size_of(description, "cuts.", ".gz"), rel=0.5)
    assert planned["packed_bytes"] == pytest.approx(size_of(description, "codes.", ".bits"), rel=0.3)
    assert planned["device_hours"] == pytest.approx(planned["hours"] / 100, abs=1e-4)


def size_of(description, begin, end):
    files = [item for entry in description.shards for item in entry.files.items()]
    return sum(stored.bytes for name, stored in files if name.split("/")[1].startswith(begin) and name.endswith(end))


def test_the_rate_is_measured_and_paid_for(audio_folder, tiny_codec_dir, capsys):
    arguments = ["plan", str(audio_folder), "--codec", str(tiny_codec_dir), "--shard-cuts", "5"]
    assert main([*arguments, "--devices", "9", "--cost-per-hour", "2.5"]) == 0
    printed = capsys.readouterr().out
    assert "24 cuts" in printed and "x real time" in printed and "cost" in printed
    assert "4 devices have no shard" in printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rate", "0"], "--rate is 0"),
        (["--rate", "nan"], "--rate is nan"),
        (["--devices", "0"], "--devices is 0"),
        (["--cost-per-hour", "-1"], "--cost-per-hour is -1"),
        (["--min-seconds", "900"], "no cuts in it that take part"),
    ],
)
def test_bad_options_are_one_line(audio_folder, tiny_codec_dir, capsys, options, words):
    assert main(["plan", str(audio_folder), "--codec", str(tiny_codec_dir), *options]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_nothing_readable_to_measure_with(tmp_path, write_manifest, speech, tiny_codec_dir, capsys):
    manifest = write_manifest({"a": speech(0, 0.5)})
    (tmp_path / "audio/0.wav").unlink()
    assert main(["plan", str(manifest), "--codec", str(tiny_codec_dir)]) == 2
    assert "none of the first 1 cuts can be read" in capsys.readouterr().err
