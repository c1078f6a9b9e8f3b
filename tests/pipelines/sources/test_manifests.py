"""Every kind of input gives the same stream of cuts; broken input is named."""

import gzip
import json
import os

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, RecordingSet

from pipelines.sources.manifests import content_digest, find_inputs, read_cuts
from pipelines.sources.shar_tars import find_pair
from tokenizer.errors import InputError


def cuts_of(pattern):
    return list(read_cuts(find_inputs(str(pattern))))


def test_audio_folder(audio_folder):
    cuts = [item.cut for item in cuts_of(audio_folder)]
    assert len(cuts) == 24
    assert [cut["id"] for cut in cuts[:2]] == ["speaker 0/take.00.wav", "speaker 0/take.03.flac"]
    for cut in cuts:
        info = soundfile.info(cut["recording"]["sources"][0]["source"])
        assert cut["duration"] == info.frames / info.samplerate
        assert cut["type"] == ("MonoCut" if info.channels == 1 else "MultiCut")


def test_files_that_differ_only_in_their_extension_keep_apart(tmp_path, speech):
    for name in ("a.wav", "a.flac", "a.wav.flac", "b/a.wav", ".hidden.wav", "._a.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, speech(0, 0.1), 16000)
    (tmp_path / "notes.txt").write_text("no audio")
    assert [item.cut["id"] for item in cuts_of(tmp_path)] == ["a.flac", "a.wav", "a.wav.flac", "b/a.wav"]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_lhotse_manifests(audio_folder, tmp_path, suffix):
    recordings = RecordingSet.from_dir(audio_folder, "**/*.flac")
    recordings.to_file(tmp_path / f"recordings{suffix}")
    CutSet.from_manifests(recordings=recordings).to_file(tmp_path / f"cuts{suffix}")
    from_recordings = [item.cut for item in cuts_of(tmp_path / f"recordings{suffix}")]
    from_cuts = [item.cut for item in cuts_of(tmp_path / f"cuts{suffix}")]
    assert len(from_recordings) == len(from_cuts) == 12
    for whole, cut in zip(from_recordings, from_cuts, strict=True):
        assert (whole["duration"], whole["channel"]) == (cut["duration"], cut["channel"])
        assert whole["recording"] == cut["recording"]


def test_glob_joins_manifests_in_order(write_manifest, speech, tmp_path):
    first = write_manifest({"a": speech(0, 0.2), "b": speech(1, 0.2)})
    (tmp_path / "cuts2.jsonl").write_bytes(first.read_bytes())
    assert [item.cut["id"] for item in cuts_of(tmp_path / "cuts*.jsonl")] == ["a", "b", "a", "b"]


def test_shar_folder_gives_the_audio_inside_the_tar(write_manifest, speech, tmp_path):
    waves = {f"cut-{i}": speech(i, 0.3 + i / 10) for i in range(5)}
    (tmp_path / "shar").mkdir()
    CutSet.from_file(write_manifest(waves)).with_recording_path_prefix(tmp_path).to_shar(
        tmp_path / "shar", {"recording": "flac"}, shard_size=2
    )
    items = cuts_of(tmp_path / "shar")
    assert [item.cut["id"] for item in items] == list(waves)
    for item in items:
        place = find_pair(item.audio)
        with open(place.path, "rb") as tar:
            tar.seek(place.offset)
            (tmp_path / "piece.flac").write_bytes(tar.read(place.size))
        wave, _ = soundfile.read(tmp_path / "piece.flac")
        assert np.abs(wave - waves[item.cut["id"]]).max() < 2**-14  # FLAC of 16 bits
    for path in (tmp_path / "shar").glob("cuts.*"):  # cuts that do not describe their recordings
        lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        path.write_bytes(gzip.compress("".join(json.dumps({**o, "recording": None}) + "\n" for o in lines).encode()))
    again = cuts_of(tmp_path / "shar")
    assert [item.audio for item in again] == [find_pair(item.audio) for item in items]
    assert [item.cut for item in again] == [item.cut for item in items]


def test_relative_paths_are_found_beside_the_manifest_or_from_here(write_manifest, speech, tmp_path, monkeypatch):
    manifest = write_manifest({"a": speech(0, 0.2)})
    beside = cuts_of(manifest)[0].cut["recording"]["sources"][0]["source"]
    assert beside == str(tmp_path / "audio/0.wav")
    (tmp_path / "elsewhere/audio").mkdir(parents=True)
    soundfile.write(tmp_path / "elsewhere/audio/0.wav", speech(1, 0.2), 16000)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cuts_of(manifest)[0].cut["recording"]["sources"][0]["source"] == str(tmp_path / "elsewhere/audio/0.wav")


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("{not json", "line 2"),
        ('"text"', "JSON object"),
        ('{"id": "s", "start": 0, "duration": 1, "recording_id": "r"}', "expected a Lhotse cut or recording"),
        ('{"type": "MonoCut", "duration": 1}', "its id is None"),
        ('{"type": "MonoCut", "id": 7, "duration": 1}', "its id is 7"),
        ('{"type": "MonoCut", "id": "a", "recording": {"id": "a"}}', "sources"),
        ('{"type": "MixedCut", "id": "a"}', "tracks"),
        ('{"type": "MonoCut", "id": "a", "custom": [1]}', "its custom field is [1]"),
        ('{"type": "MonoCut", "id": "a", "recording": {"sources": [{"type": "file", "source": 3}]}}', "line 2"),
    ],
)
def test_a_broken_line_is_named(write_manifest, speech, line, word):
    manifest = write_manifest({"a": speech(0, 0.2)})
    with open(manifest, "a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=r"line 2") as error:
        cuts_of(manifest)
    assert word in str(error.value) and str(manifest) in str(error.value)


def test_a_truncated_gzip_is_named(tmp_path):
    lines = "".join(json.dumps({"id": os.urandom(20).hex(), "type": "MonoCut"}) + "\n" for _ in range(1000))
    whole = gzip.compress(lines.encode())
    (tmp_path / "cuts.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cuts\.jsonl\.gz: damaged gzip after line \d+"):
        cuts_of(tmp_path / "cuts.jsonl.gz")


@pytest.mark.parametrize("name", ["missing.jsonl", "missing/*.wav", "a.txt", "empty"])
def test_nothing_to_read(tmp_path, name):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"expected|neither"):
        cuts_of(tmp_path / name)


def test_digest_follows_the_content(write_manifest, speech, tmp_path):
    manifest = write_manifest({"a": speech(0, 0.2)})
    before = content_digest([str(manifest)])
    assert content_digest([str(manifest)]) == before
    manifest.write_text(manifest.read_text().replace("anna", "anne"))
    assert content_digest([str(manifest)]) != before
    folder_before = content_digest([str(tmp_path / "audio")])
    soundfile.write(tmp_path / "audio/new.wav", speech(1, 0.2), 16000)
    assert content_digest([str(tmp_path / "audio")]) != folder_before


def test_a_manifest_from_a_pipe_is_to_be_written_to_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"pipe: is no file.*write it to a file whose name ends in \.jsonl or"):
        list(read_cuts(find_inputs(str(tmp_path / "pipe"))))


def test_a_glob_of_many_files_stays_a_glob_and_takes_work_in_proportion(tmp_path, speech, monkeypatch):
    from pipelines.sources import manifests

    for i in range(manifests.NAMED_ONE_BY_ONE + 1):
        folder = tmp_path / f"speaker {i % 3}"
        folder.mkdir(exist_ok=True)
        soundfile.write(folder / f"{i:04}.wav", speech(i % 5, 0.1), 16000)
    pattern = str(tmp_path / "*" / "*.wav")
    monkeypatch.chdir(tmp_path)
    assert find_inputs("*/*.wav") == [pattern]
    listed = sorted(str(path) for path in tmp_path.glob("*/*.wav"))
    assert [cut.cut for cut in read_cuts([pattern])] == [cut.cut for cut in read_cuts(listed)]
    assert content_digest([pattern]) == content_digest(listed)
    shared = []
    monkeypatch.setattr(manifests, "folder_of_all", lambda places: shared.append(len(places)) or str(tmp_path))
    assert sum(1 for _ in read_cuts([pattern])) == len(listed) and shared == [len(listed)]
