"""Names of any bytes, folders of any files, and manifests against the files they describe."""

import json
import logging
import os
import shutil

import numpy as np
import pytest
import soundfile

from pipelines.sources.audio import read_wave
from pipelines.sources.manifests import find_inputs, read_cuts
from pipelines.storage.places import is_url
from pipelines.tools.verify import verify
from slm.cli import main
from tokenizer.errors import InputError, printable


def ids(folder):
    return [item.id for item in read_cuts(find_inputs(str(folder)))]


def test_suffixes_decide_nothing_and_what_is_passed_over_is_said(speech, tmp_path, caplog):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, kind in {
        "a.wav": "WAV",
        "b.voc": "VOC",
        "c.snd": "AU",
        "d": "FLAC",
        "e.txt": "OGG",
        "f.mp2": "MP3",
    }.items():
        soundfile.write(folder / name, speech(1, 0.5), 16000, format=kind)
    for name in ("notes.md", "one.json", "two.json", ".hidden"):
        (folder / name).write_text("{}")
    (folder / "talk.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(20000))
    with caplog.at_level(logging.WARNING):
        assert ids(folder) == ["a.wav", "b.voc", "c.snd", "d", "e.txt", "f.mp2", "talk.m4a"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}: passed over 3 files (2 .json, 1 .md), in which there is no audio"
    ]


def test_a_folder_with_other_files_only_says_which(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError, match=r"no audio below it.*but 1 file \(1 \.txt\)"):
        ids(tmp_path)


def test_names_that_are_not_utf8(speech, run, tmp_path, capsys, tiny_codec_dir):
    folder = tmp_path / "in"
    folder.mkdir()
    name = os.fsdecode(b"b\xffd.wav")
    soundfile.write(tmp_path / "a.wav", speech(0, 1.0), 16000)
    shutil.copy(tmp_path / "a.wav", os.path.join(folder, name))
    assert run(folder, tmp_path / "out")["cuts"] == 1
    assert verify(tmp_path / "out") == []
    assert main(["report", str(tmp_path / "out"), "--html", str(tmp_path / "r.html")]) == 0
    assert "b\ufffdd.wav" in (tmp_path / "r.html").read_text(encoding="utf-8")
    words = ["encode", os.path.join(folder, name), str(tmp_path / "x.npy"), "--codec", str(tiny_codec_dir)]
    assert main(words) == 0
    assert len(np.load(tmp_path / "x.npy")) == 50


@pytest.mark.parametrize("name", ["o#1", "o?1", "o{1,2}", "a::b", "o[1]", "o*", "s3:x", "ü b"])
def test_folders_whose_names_mean_something_in_a_url(speech, run, tmp_path, name):
    soundfile.write(tmp_path / "a.wav", speech(0, 1.0), 16000)
    assert not is_url(name)
    run(tmp_path / "a.wav", tmp_path / name)
    assert verify(tmp_path / name) == []


def test_control_characters_never_reach_the_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile = "\x1b]0;owned\x07\x1b[2Jabc\u202e\x9b1m"
    (tmp_path / "cuts.jsonl").write_text(json.dumps({"type": hostile, "id": "a"}) + "\n")
    assert main(["plan", "cuts.jsonl", "--rate", "1"]) == 2
    assert main(["encode", hostile, "x.npy"]) == 2
    shown = capsys.readouterr()
    assert not any(sign in shown.out + shown.err for sign in "\x1b\x07\x9b\u202e")
    assert printable("a\x1b[2J\tb\n") == "a\\x1b[2J\tb\n"


def manifest_of(write_manifest, wave, rate, **changes):
    manifest = write_manifest({"a": wave}, rate)
    line = json.loads(manifest.read_text())
    line["recording"].update({key: value for key, value in changes.items() if key != "start"})
    line["duration"] = line["recording"]["duration"]
    line["start"] = changes.get("start", 0.0)
    manifest.write_text(json.dumps(line) + "\n")
    (item,) = read_cuts([str(manifest)])
    return item


def test_a_manifest_a_little_longer_than_its_file_is_filled_up(write_manifest, speech):
    item = manifest_of(write_manifest, speech(0, 2.0), 16000, duration=2.072, num_samples=33152)
    wave = read_wave(item, 16000)
    assert len(wave) == 33152 and not wave[32000:].any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"duration": 2.6, "num_samples": 41600}, "truncated"),
        ({"sampling_rate": 8000, "duration": 4.0}, "32000 samples at 8000 Hz .* 32000 at 16000 Hz"),
        ({"sampling_rate": 48000, "duration": 32000 / 48000}, "32000 samples at 48000 Hz .* 32000 at 16000 Hz"),
        ({"duration": 1.2, "num_samples": 19200}, r"19200 samples .* \(1.200 s\), the file has 32000"),
        ({"start": -0.01}, "impossible start"),
    ],
)
def test_a_manifest_that_describes_another_file(write_manifest, speech, changes, words):
    with pytest.raises(InputError, match=words):
        read_wave(manifest_of(write_manifest, speech(0, 2.0), 16000, **changes), 16000)


@pytest.mark.parametrize("changes", [{"start": -1e-9}, {"sampling_rate": 48000, "num_samples": 96000}])
def test_a_manifest_that_is_right_in_its_way(write_manifest, speech, changes):
    wave = speech(0, 2.0)
    np.testing.assert_array_equal(read_wave(manifest_of(write_manifest, wave, 16000, **changes), 16000), wave)


def test_the_tolerance_is_lhotses(write_manifest, speech, monkeypatch):
    monkeypatch.setenv("LHOTSE_AUDIO_DURATION_MISMATCH_TOLERANCE", "0.05")
    with pytest.raises(InputError, match="truncated"):
        read_wave(manifest_of(write_manifest, speech(0, 2.0), 16000, duration=2.072, num_samples=33152), 16000)


def test_a_user_without_a_home_is_told(monkeypatch):
    from tokenizer.files import cache_folder

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(InputError, match="XDG_CACHE_HOME"):
        cache_folder()
