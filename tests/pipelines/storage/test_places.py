"""Input by URL gives the tokens of the same input on disk; a network that fails is no end of audio."""

import gzip
import io
import json

import fsspec
import numpy as np
import pytest
import soundfile

from pipelines.dataset.token_dataset import TokenDataset
from pipelines.sources.audio import read_wave
from pipelines.sources.audio_bytes import SlicedBytes
from pipelines.sources.cuts import Selection
from pipelines.sources.manifests import content_digest, find_inputs, read_cuts
from slm.cli import main
from tokenizer.audio_input.reader import AudioReader
from tokenizer.errors import InputError


@pytest.fixture
def bucket():
    """The URL of an empty folder in fsspec's file system in memory."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield "memory://bucket/data"
    files.store.clear()


def upload(folder, bucket):
    for path in folder.rglob("*"):
        if path.is_file():
            fsspec.filesystem("memory").pipe(f"{bucket}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def waves(inputs):
    return {item.cut["id"]: read_wave(item, 16000) for item in read_cuts(inputs)}


def same(first, second):
    assert list(first) == list(second) and first
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])


def test_a_folder_and_globs(audio_folder, bucket):
    upload(audio_folder, bucket)
    same(waves(find_inputs(bucket)), waves(find_inputs(str(audio_folder))))
    pattern = "speaker 1/*.flac"
    same(waves(find_inputs(f"{bucket}/{pattern}")), waves(find_inputs(str(audio_folder / pattern))))
    one = "speaker 0/take.00.wav"
    same(waves(find_inputs(f"{bucket}/{one}")), waves(find_inputs(str(audio_folder / one))))


def test_a_manifest_with_relative_and_absolute_audio(write_manifest, speech, bucket, run, tmp_path):
    manifest = write_manifest({f"cut-{i}": speech(i, 0.4 + i / 10, 22050) for i in range(5)}, 22050)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    (tmp_path / "remote").mkdir()
    lines[1]["recording"]["sources"][0].update(type="url", source=f"{bucket}/audio/1.wav")
    lines[2]["recording"]["sources"][0]["source"] = str(tmp_path / "audio/2.wav")
    (tmp_path / "remote/cuts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    upload(tmp_path / "remote", bucket)
    (tmp_path / "audio").rename(tmp_path / "remote/audio")
    upload(tmp_path / "remote", bucket)
    (tmp_path / "remote/audio").rename(tmp_path / "audio")
    assert run(f"{bucket}/cuts.jsonl", tmp_path / "refused")["quarantined"] == 1  # the file of this machine
    local = Selection(allow_hosts=("file://",))
    assert run(f"{bucket}/cuts.jsonl", tmp_path / "by-url", selection=local)["quarantined"] == 0
    run(manifest, tmp_path / "by-path")
    by_url, by_path = TokenDataset(tmp_path / "by-url"), TokenDataset(tmp_path / "by-path")
    for i in range(5):
        np.testing.assert_array_equal(by_url.codes(i), by_path.codes(i))


def test_a_shar_folder_with_offsets_channels_and_fields(write_manifest, speech, bucket, tmp_path):
    """Cuts out of the middle of recordings, of one channel of two: in Shar they begin at 0 of their own audio."""
    from lhotse import CutSet

    stereo = np.round(np.stack([speech(0, 3.0), speech(1, 3.0)], axis=1) * 2**15) / 2**15
    manifest = write_manifest({"a": stereo, "b": stereo[::-1]})
    cuts = CutSet.from_file(manifest).with_recording_path_prefix(tmp_path)
    both, other = cuts
    left, right = both.to_mono()
    pieces = [left.truncate(offset=0.7, duration=1.3), right.truncate(offset=1.1, duration=0.9), other]
    for i, piece in enumerate(pieces):
        piece.custom = {"mood": f"mood {i}"}
    (tmp_path / "shar").mkdir()
    CutSet.from_cuts(pieces).to_shar(tmp_path / "shar", {"recording": "flac", "mood": "jsonl"}, shard_size=2)
    for path in (tmp_path / "shar").glob("cuts.*"):  # the field must come from its own shards
        lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        bare = [{key: value for key, value in line.items() if key != "custom"} for line in lines]
        path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in bare).encode()))
    upload(tmp_path / "shar", bucket)
    items = list(read_cuts(find_inputs(bucket)))
    assert [item.cut["custom"]["mood"] for item in items] == ["mood 0", "mood 1", "mood 2"]
    found = waves(find_inputs(bucket))
    same(found, waves(find_inputs(str(tmp_path / "shar"))))
    for piece, wave in zip(pieces, found.values(), strict=True):
        np.testing.assert_allclose(wave, piece.load_audio().mean(axis=0), atol=2**-15)


def test_digest_follows_remote_content(write_manifest, speech, bucket, tmp_path):
    write_manifest({"a": speech(0, 0.2)})
    upload(tmp_path, bucket)
    inputs = [f"{bucket}/cuts.jsonl", f"{bucket}/audio"]
    before = content_digest(inputs)
    assert content_digest(inputs) == before
    fsspec.filesystem("memory").pipe(f"{bucket}/audio/1.wav", b"more")
    assert content_digest(inputs) != before


@pytest.mark.parametrize("url", ["memory://bucket/nothing.jsonl", "memory://bucket/*.wav", "gopher://host/a.wav"])
def test_urls_of_nothing_are_named(bucket, url):
    with pytest.raises(InputError, match=r"expected|cannot be read \(Protocol not known"):
        find_inputs(url)


def test_a_network_that_fails_in_the_middle_is_an_error(write_manifest, speech, monkeypatch):
    (item,) = read_cuts(find_inputs(str(write_manifest({"a": speech(0, 30.0)}))))

    class Failing(io.FileIO):
        def read(self, size=-1):
            if self.tell() > 500_000:
                raise ConnectionError("the line is dead")
            return super().read(size)

    def open_failing(source, audio, *_):
        path = source["source"]
        return SlicedBytes(Failing(path), 0, len(open(path, "rb").read()))

    monkeypatch.setattr("pipelines.sources.audio_bytes.open_audio", open_failing)
    monkeypatch.setattr("pipelines.storage.retries.FIRST_PAUSE", 0.0)
    with pytest.raises(InputError, match=r"ConnectionError, the line is dead"):
        read_wave(item, 16000)


def test_a_stretch_of_a_file_reads_like_a_file_of_its_own(tmp_path, speech):
    buffer = io.BytesIO()
    soundfile.write(buffer, speech(3, 1.0), 16000, format="FLAC")
    content = buffer.getvalue()
    (tmp_path / "tar").write_bytes(b"before" * 100 + content + b"after" * 1000)
    with open(tmp_path / "tar", "rb") as file:
        half = np.concatenate(list(AudioReader(SlicedBytes(file, 600, len(content))).read(8000)))[:, 0]
    np.testing.assert_array_equal(half, soundfile.read(io.BytesIO(content), dtype="float32")[0][8000:])


@pytest.mark.parametrize(
    "words",
    [["export-dataset", "memory://a", "OUT"]],
)
def test_a_dataset_at_a_url_is_refused_where_it_must_be_local(audio_folder, tmp_path, monkeypatch, capsys, words):
    """Once it became a local folder named `s3:`."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as stop:
        main([str(audio_folder) if word == "IN" else word for word in words])
    assert stop.value.code == 2 and "local folders only" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
