"""Manifests that would do more than name audio, and lines that are none."""

import gzip
import io
import json
import tarfile

import fsspec
import numpy as np
import pytest
import soundfile

from pipelines.dataset.token_dataset import TokenDataset
from pipelines.format.layout import Layout
from pipelines.sources import shar_tars
from pipelines.sources.audio import read_wave
from pipelines.sources.cuts import Selection
from pipelines.sources.manifests import find_inputs, read_cuts
from pipelines.sources.shar_tars import pairs_in
from pipelines.storage.redirects import origin
from slm.cli import main
from tokenizer.errors import InputError


def ledger(out):
    return [json.loads(line) for line in Layout(out).quarantine.read_text(encoding="utf-8").splitlines()]


def with_command(manifest, tmp_path):
    """A manifest of one sound cut and of one whose audio a shell command makes; it leaves a file."""
    line = json.loads(manifest.read_text().splitlines()[0])
    wav = tmp_path / "audio/0.wav"
    command = {"type": "command", "channels": [0], "source": f"touch {tmp_path}/ran; cat {wav}"}
    other = {**line, "id": "command", "recording": {**line["recording"], "sources": [command]}}
    manifest.write_text(json.dumps(line) + "\n" + json.dumps(other) + "\n")


def test_commands_run_only_where_they_are_allowed(write_manifest, speech, run, tmp_path):
    manifest = write_manifest({"a": speech(0, 1.0)})
    with_command(manifest, tmp_path)
    run(manifest, tmp_path / "out")
    (entry,) = ledger(tmp_path / "out")
    assert (entry["id"], entry["reason"]) == ("command", "refused") and "--allow-commands" in entry["detail"]
    assert not (tmp_path / "ran").exists()
    with pytest.raises(InputError, match="--allow-commands"):
        read_wave(list(read_cuts(find_inputs(str(manifest))))[1], 16000)
    totals = run(manifest, tmp_path / "allowed", selection=Selection(allow_commands=True))
    assert totals["cuts"] == 2 and (tmp_path / "ran").exists()
    dataset = TokenDataset(tmp_path / "allowed")
    np.testing.assert_array_equal(dataset.codes(0), dataset.codes(1))


def test_commands_inside_a_mix_do_not_run_either(write_manifest, speech, tmp_path):
    from lhotse import CutSet

    manifest = write_manifest({"a": speech(0, 1.0)})
    with_command(manifest, tmp_path)
    first, second = CutSet.from_file(manifest)
    (tmp_path / "mix.jsonl").write_text(json.dumps(first.append(second).with_id("mix").to_dict()) + "\n")
    (item,) = read_cuts(find_inputs(str(tmp_path / "mix.jsonl")))
    with pytest.raises(InputError, match="--allow-commands"):
        read_wave(item, 16000)
    assert not (tmp_path / "ran").exists()


def test_a_manifest_from_a_url_fetches_from_its_own_host_and_those_allowed(write_manifest, speech, tmp_path):
    line = json.loads(write_manifest({"a": speech(0, 1.0)}).read_text())
    files = fsspec.filesystem("memory")
    wav = (tmp_path / "audio/0.wav").read_bytes()
    for place in ("here/audio/0.wav", "there/0.wav"):
        files.pipe(f"/{place}", wav)
    places = {"relative": "audio/0.wav", "same": "memory://here/audio/0.wav", "other": "memory://there/0.wav"}
    places |= {"local": f"file://{tmp_path}/audio/0.wav", "chain": "gopher://x::memory://here/audio/0.wav"}
    lines = []
    for key, place in places.items():
        source = {"type": "url" if "//" in place else "file", "channels": [0], "source": place}
        lines.append({**line, "id": key, "recording": {**line["recording"], "sources": [source]}})
    files.pipe("/here/cuts.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())

    def refused(hosts):
        items = read_cuts(["memory://here/cuts.jsonl"], Selection(allow_hosts=hosts).access)
        return {item.id for item in items if item.cut["recording"]["sources"][0]["type"] == "refused"}

    assert refused(()) == {"other", "local", "chain"}
    assert refused(("memory://there/",)) == {"local", "chain"}
    assert Selection(allow_hosts=("a",)).to_dict() == {"allow_hosts": ["a"]}
    assert Selection(**Selection(allow_hosts=("a",)).to_dict()).access == Selection(allow_hosts=("a",)).access
    (tmp_path / "cuts.jsonl").write_bytes(files.cat("/here/cuts.jsonl"))
    local = [item.cut["recording"]["sources"][0]["type"] for item in read_cuts([str(tmp_path / "cuts.jsonl")])]
    assert "refused" not in local  # a local manifest is the user's own


def test_origins():
    assert origin("https://Host.org:80/a/b?c") == "https://host.org:80"
    assert origin("zip://a.wav::s3://bucket/x.zip") == "s3://bucket"


def test_what_a_cut_carries_is_kept_apart_from_what_shards_write(write_manifest, speech, run, tmp_path, caplog):
    manifest = write_manifest({"a": speech(0, 1.0)})
    line = json.loads(manifest.read_text())
    line["custom"] = {"codes": [1, 2, 3], "cut_id": "theirs", "input_codes": "too", "age": 7}
    manifest.write_text(json.dumps(line) + "\n")
    run(manifest, tmp_path / "out")
    with gzip.open(tmp_path / "out/shards/cuts.000000.jsonl.gz") as file:
        custom = json.loads(file.readline())["custom"]
    assert custom["input_input_codes"] == [1, 2, 3] and custom["input_codes"] == "too"
    assert (custom["input_cut_id"], custom["cut_id"], custom["age"]) == ("theirs", "a", 7)
    assert sum("custom.codes of the input is kept as" in record.message for record in caplog.records) == 1


def test_padding_goes_to_quarantine(write_manifest, speech, run, tmp_path):
    from lhotse.cut import PaddingCut

    manifest = write_manifest({"a": speech(0, 1.0)})
    padding = PaddingCut(id="pad", duration=1.0, sampling_rate=16000, feat_value=0.0, num_samples=16000)
    with open(manifest, "a") as file:
        file.write(json.dumps(padding.to_dict()) + "\n")
    assert run(manifest, tmp_path / "out")["cuts"] == 1
    (entry,) = ledger(tmp_path / "out")
    assert (entry["id"], entry["detail"]) == ("pad", "the cut has no recording")


@pytest.mark.parametrize(
    "line",
    [
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        '{"type": "MonoCut", "id": "a", "custom": ' + "[" * 5000 + "]" * 5000 + "}",
        '{"type": "MixedCut", "id": "a", "tracks": [[]]}',
        '{"type": "MixedCut", "id": "a", "tracks": [{"offset": "x", "cut": {"duration": 1}}]}',
        '{"type": "MonoCut", "id": "a", "recording": [1]}',
        '{"type": "MonoCut", "id": "a", "recording": {"sources": ["x"]}}',
        '{"sources": "x"}',
        '{"sources": [{"channels": 3}]}',
        '[{"type": "MonoCut"}]',
    ],
)
def test_lines_that_are_no_cuts_are_named(tmp_path, line):
    (tmp_path / "cuts.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=r"cuts\.jsonl, line 1: "):
        list(read_cuts([str(tmp_path / "cuts.jsonl")]))


def test_a_gzip_bomb_is_refused_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.sources.cuts.LONGEST_LINE", 1 << 20)
    with gzip.open(tmp_path / "cuts.jsonl.gz", "wb") as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    with pytest.raises(InputError, match=r"line 1: longer than 1 MiB"):
        list(read_cuts([str(tmp_path / "cuts.jsonl.gz")]))


def make_shar(folder, wave):
    from lhotse import CutSet, Recording

    soundfile.write(folder.parent / "a.wav", wave, 16000)
    folder.mkdir()
    cuts = CutSet.from_cuts([Recording.from_file(folder.parent / "a.wav").to_cut()])
    cuts.to_shar(folder, fields={"recording": "wav"}, shard_size=1)


def test_hidden_files_in_a_shar_folder_are_passed_over(speech, tmp_path):
    make_shar(tmp_path / "shar", speech(0, 1.0))
    expected = [item.cut for item in read_cuts([str(tmp_path / "shar")])]
    for path in list((tmp_path / "shar").iterdir()):
        (tmp_path / "shar" / f"._{path.name}").write_bytes(b"\0\5\x16\7")
        (tmp_path / "shar" / f".{path.name}.swp").write_bytes(b"b0VIM")
    assert [item.cut for item in read_cuts([str(tmp_path / "shar")])] == expected


@pytest.mark.parametrize("kind", ["link", "folder", "link to the manifest", "list", "deep", "text"])
def test_odd_members_of_a_shar_tar_are_named(speech, tmp_path, kind):
    make_shar(tmp_path / "shar", speech(0, 0.1))
    (path,) = (tmp_path / "shar").glob("recording*.tar")
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    (data, wav), (meta, text) = members
    if kind in ("link", "folder"):
        data.type, data.linkname, data.size, wav = (
            tarfile.SYMTYPE if kind == "link" else tarfile.DIRTYPE,
            "/etc/passwd",
            0,
            b"",
        )
    elif kind == "link to the manifest":
        meta.type, meta.linkname, meta.size, text = tarfile.LNKTYPE, data.name, 0, b""
    else:
        text = {"list": b"[1]", "deep": b"[" * 100_000, "text": b'"x"'}[kind]
        meta.size = len(text)
    with tarfile.open(path, "w") as tar:
        tar.addfile(data, io.BytesIO(wav))
        tar.addfile(meta, io.BytesIO(text))
    if kind in ("link", "folder"):
        with pytest.raises(InputError, match=r"cut a .*: unreadable, .*recording\.000000\.tar: not a Shar tar"):
            read_wave(*read_cuts([str(tmp_path / "shar")]), 16000)
    (manifest,) = (tmp_path / "shar").glob("cuts*.gz")
    cut = json.loads(gzip.decompress(manifest.read_bytes()))
    manifest.write_bytes(gzip.compress(json.dumps({**cut, "recording": None}).encode()))  # the JSON in the tar is read
    with pytest.raises(InputError, match=r"recording\.000000\.tar: not a Shar tar"):
        list(read_cuts([str(tmp_path / "shar")]))


def test_pairs_after_placeholders_at_the_beginning_of_a_shar_tar_are_counted(tmp_path):
    with tarfile.open(tmp_path / "recording.000000.tar", "w") as tar:
        for name in ("a.nodata", "a.nometa", "b.nodata", "b.nometa", "c.wav", "c.json"):
            tar.addfile(tarfile.TarInfo(name))
    pairs = [(pair.name, pair.audio is None) for pair in pairs_in(str(tmp_path / "recording.000000.tar"))]
    assert pairs == [("a", True), ("b", True), ("c", False)]


def test_a_shar_tar_of_other_cuts_is_found_by_the_worker(speech, run, tmp_path):
    """Planning does not look into tars; whoever reads the audio holds the names of its pairs against the cuts."""
    make_shar(tmp_path / "shar", speech(0, 1.0))
    (path,) = (tmp_path / "shar").glob("recording*.tar")
    (manifest,) = (tmp_path / "shar").glob("cuts*.gz")
    cut = json.loads(gzip.decompress(manifest.read_bytes()))
    lines = [{**cut, "id": name} for name in (cut["id"], "missing")]
    manifest.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    totals = run(tmp_path / "shar", tmp_path / "out", max_quarantine_rate=1.0)
    assert (totals["cuts"], totals["quarantined"]) == (1, 1)
    (failed,) = ledger(tmp_path / "out")
    assert (failed["reason"], failed["source"]) == ("missing file", f"{path}, missing")
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            member.name = f"other{member.name[-4:]}"
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(InputError, match="wrong manifest, pair 0 of the tar is other"):
        read_wave(next(read_cuts([str(tmp_path / "shar")])), 16000)


def test_a_shar_tar_that_a_server_refuses_ends_no_run(speech, run, tmp_path, monkeypatch):
    """Errors of HTTP are no OSError."""
    make_shar(tmp_path / "shar", speech(0, 1.0))

    def refused(path, *more):
        raise RuntimeError("403, message='Forbidden'")

    monkeypatch.setattr(shar_tars, "pairs_in", refused)
    assert run(tmp_path / "shar", tmp_path / "out", max_quarantine_rate=1.0)["quarantined"] == 1
    assert ledger(tmp_path / "out")[0]["reason"] == "unreadable"


def test_a_command_line_with_commands(write_manifest, speech, tiny_codec_dir, tmp_path):
    manifest = write_manifest({"a": speech(0, 1.0)})
    with_command(manifest, tmp_path)
    words = ["tokenize", str(manifest), str(tmp_path / "out"), "--codec", str(tiny_codec_dir), "--engine", "inline"]
    assert main([*words, "--max-quarantine-rate", "0"]) == 2 and not (tmp_path / "ran").exists()
    assert main([*words, "--allow-commands"]) == 2  # not the run that was begun
    words[2] = str(tmp_path / "other")
    assert main([*words, "--allow-commands"]) == 0 and (tmp_path / "ran").exists()
