"""Whole runs: everything that was planned is accounted for, and the same input gives the same bytes."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipelines.bulk.run import Job
from pipelines.dataset.token_dataset import TokenDataset
from pipelines.tools.verify import verify
from slm.cli import main
from tokenizer.errors import InputError


def test_same_bytes_again(finished, audio_folder, run, tmp_path, file_bytes):
    run(audio_folder, tmp_path / "out")
    assert file_bytes(tmp_path / "out") == file_bytes(finished)
    assert not (tmp_path / "out/work").exists()


def test_everything_that_was_planned_is_accounted_for(write_manifest, speech, run, tmp_path):
    waves = {f"cut-{i}": speech(i, 0.4 + i / 10) for i in range(12)}
    waves["cut-12"] = speech(12, 0.5)
    waves["cut-1"] = np.zeros(0, np.float32)
    waves["cut-2"][77] = np.nan
    waves["cut-3"][-1] = np.inf
    manifest = write_manifest(waves)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    (tmp_path / "audio/4.wav").unlink()
    (tmp_path / "audio/5.wav").write_bytes(b"this is no audio")
    (tmp_path / "audio/6.wav").write_bytes((tmp_path / "audio/6.wav").read_bytes()[:1000])
    del lines[7]["recording"]
    lines[8]["channel"] = 3
    lines[9]["duration"] = 1e9
    lines[10]["duration"] = 1e-6
    soundfile.write(tmp_path / "audio/12.wav", speech(12, 0.5) * np.float32(1e30), 16000, subtype="FLOAT")
    lines.append(lines[0])  # the same id again
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    totals = run(manifest, tmp_path / "out", max_quarantine_rate=1.0)
    quarantined = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert {entry["id"]: entry["reason"] for entry in quarantined} == {
        "cut-1": "zero length",
        "cut-2": "not finite",
        "cut-3": "not finite",
        "cut-4": "missing file",
        "cut-5": "unreadable",
        "cut-6": "truncated",
        "cut-7": "zero length",
        "cut-8": "no such channel",
        "cut-9": "truncated",
        "cut-10": "zero length",
        "cut-12": "not audio",
    }
    assert all(entry["source"] or entry["id"] == "cut-7" for entry in quarantined)
    assert all(entry["detail"] and entry["attempts"] == 2 for entry in quarantined)
    assert (totals["planned"], totals["cuts"], totals["quarantined"], totals["duplicate_ids"]) == (14, 3, 11, 1)
    dataset = TokenDataset(tmp_path / "out")
    assert [dataset.cut_id(i) for i in range(3)] == ["cut-0", "cut-11", "cut-0"]
    np.testing.assert_array_equal(dataset.codes(0), dataset.codes(2))
    assert verify(tmp_path / "out") == []  # the shard 5..9 has no cut left, and no files


def test_audio_a_little_short_is_filled_with_silence(write_manifest, speech, run, tmp_path):
    # half a second is Lhotse's own tolerance
    manifest = write_manifest({"a": speech(0, 1.0)})
    line = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**line, "duration": 1.48}) + "\n")
    assert run(manifest, tmp_path / "out")["tokens"] == 74
    manifest.write_text(json.dumps({**line, "duration": 1.52}) + "\n")
    assert run(manifest, tmp_path / "out2", max_quarantine_rate=1.0)["quarantined"] == 1


def test_broken_files_in_a_folder_are_quarantined(audio_folder, run, tmp_path):
    shutil.copytree(audio_folder, tmp_path / "audio")
    (tmp_path / "audio/broken.wav").write_bytes(b"no audio")
    (tmp_path / "audio/empty.flac").write_bytes(b"")
    totals = run(tmp_path / "audio", tmp_path / "out")
    assert (totals["planned"], totals["cuts"], totals["quarantined"]) == (26, 24, 2)
    quarantined = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert {entry["id"]: entry["reason"] for entry in quarantined} == {
        "broken.wav": "unreadable",
        "empty.flac": "zero length",
    }


def test_folders_that_may_not_be_read_stop_the_run(audio_folder, run, tmp_path, monkeypatch):
    scan, locked = os.scandir, audio_folder / "locked"

    def forbidden(path):  # a mode of 000 does not keep root out
        if not isinstance(path, int) and Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    locked.mkdir()
    monkeypatch.setattr("os.scandir", forbidden)
    try:
        with pytest.raises(PermissionError, match="locked"):
            run(audio_folder, tmp_path / "out")
    finally:
        locked.rmdir()


def test_shar_input_has_the_tokens_of_its_audio(write_manifest, speech, run, tmp_path):
    from lhotse import CutSet

    manifest = write_manifest({f"cut-{i}": np.round(speech(i, 0.5 + i / 10) * 2**15) / 2**15 for i in range(5)})
    (tmp_path / "shar").mkdir()
    CutSet.from_file(manifest).with_recording_path_prefix(tmp_path).to_shar(
        tmp_path / "shar", {"recording": "flac"}, shard_size=2
    )
    run(manifest, tmp_path / "from-files")
    run(tmp_path / "shar", tmp_path / "from-shar")
    files, shar = TokenDataset(tmp_path / "from-files"), TokenDataset(tmp_path / "from-shar")
    for i in range(5):
        assert files.cut_id(i) == shar.cut_id(i)
        np.testing.assert_array_equal(files.codes(i), shar.codes(i))


@pytest.mark.parametrize("mended", [True, False])
def test_too_many_failures_stop_the_run(write_manifest, speech, run, tmp_path, mended):
    manifest = write_manifest({f"cut-{i}": speech(i, 0.4) for i in range(10)})
    for i in (0, 1, 2):
        (tmp_path / f"audio/{i}.wav").rename(tmp_path / f"{i}.wav")
    with pytest.raises(InputError, match=r"3 of 10 cuts failed.*missing file.*--max-quarantine-rate"):
        run(manifest, tmp_path / "out", max_quarantine_rate=0.2)
    if mended:
        for i in (0, 1, 2):
            (tmp_path / f"{i}.wav").rename(tmp_path / f"audio/{i}.wav")
        assert run(manifest, tmp_path / "out", max_quarantine_rate=0.2)["quarantined"] == 0
    else:
        assert run(manifest, tmp_path / "out", max_quarantine_rate=0.6)["quarantined"] == 3


def test_nothing_could_be_tokenized(write_manifest, speech, run, tmp_path):
    manifest = write_manifest({"a": speech(0, 0.4)})
    (tmp_path / "audio/0.wav").unlink()
    assert run(manifest, tmp_path / "out", max_quarantine_rate=1.0)["cuts"] == 0
    assert verify(tmp_path / "out") == []
    assert len(TokenDataset(tmp_path / "out")) == 0


def test_command_prints_json(write_manifest, speech, tmp_path, capsys, command):
    manifest = write_manifest({"a": speech(0, 1.0)})
    assert main(command(manifest, tmp_path / "out", "--executor", "inline", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["cuts"], result["tokens"], result["was_complete"]) == (1, 50, False)
    assert main(command(manifest, tmp_path / "out", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["was_complete"]


def test_default_job_is_an_hour_a_shard():
    assert Job("in", "out", "small").sharding.hours == 1.0
