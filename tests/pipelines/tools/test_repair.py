"""`repair` brings back the original bytes of any file; a retry touches what had failed, and nothing else."""

import json
import shutil

import numpy as np
import pytest

from pipelines.bulk.executors.inline import Inline
from pipelines.bulk.plan import Sharding
from pipelines.bulk.run import Job, tokenize
from pipelines.format.layout import Layout
from pipelines.storage.folders import RemotePath
from pipelines.tools.repair import repair
from pipelines.tools.verify import verify
from slm.cli import main
from tests.pipelines.conftest import files_at
from tokenizer.errors import InputError


@pytest.fixture
def damaged(write_manifest, speech, run, tmp_path):
    """A dataset with packed codes and quarantined cuts; all of shard 1 is."""
    manifest = write_manifest({f"cut-{i}": speech(i, 0.3 + i / 20) for i in range(8)})
    for i in (1, 2, 3, 6):
        (tmp_path / f"audio/{i}.wav").rename(tmp_path / f"{i}.wav")
    run(manifest, tmp_path / "out", shard_cuts=2, pack=True)
    return tmp_path / "out"


FILES = [
    "dataset.json",
    "dataset.copy.json",
    "quarantine.jsonl",
    "index/wids.json",
    "index/codes.000002.npy",
    "index/codes.000000.tar.idx",
    "shards/cuts.000003.jsonl.gz",
    "shards/codes.000000.tar",
    "packed/codes.000002.bits",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["bit", "gone"])
def test_every_file_gets_its_original_bytes(damaged, file_bytes, name, harm):
    before = file_bytes(damaged)
    content = bytearray(before[name])
    content[len(content) // 3] ^= 0x10
    (damaged / name).write_bytes(content) if harm == "bit" else (damaged / name).unlink()
    if harm == "bit":
        assert any(problem.startswith(name) for problem in verify(damaged))
    repaired = repair(damaged, workers=1)
    assert file_bytes(damaged) == before
    assert repaired.is_original and (name in repaired.files) == (name in FILES[:4])
    assert verify(damaged) == []


def test_one_flipped_bit_in_every_file(damaged, file_bytes):
    """A random bit, in each file there is in turn: `verify` finds it, `repair` restores it.

    `dataset.json` and its copy have a checksum over their own content, and so either is restored from the other.
    """
    rng = np.random.default_rng(11)
    before = file_bytes(damaged)
    assert {name.split("/")[0] for name in before} >= {"dataset.json", "quarantine.jsonl", "shards", "index", "packed"}
    for name, content in before.items():
        flipped, bit = bytearray(content), int(rng.integers(8 * len(content)))
        flipped[bit // 8] ^= 1 << bit % 8
        (damaged / name).write_bytes(flipped)
        assert any(problem.startswith(name) for problem in verify(damaged)), (name, bit)
        assert repair(damaged, workers=1).is_original, (name, bit)
        assert file_bytes(damaged) == before, (name, bit)


def test_on_a_store(damaged, file_bytes, memory_store):
    before = file_bytes(damaged)
    url = memory_store(damaged)
    for number, name in enumerate(FILES):
        content = bytearray(before[name])
        content[len(content) // 3] ^= 0x10
        path = RemotePath(f"{url}/{name}")
        path.write_bytes(bytes(content)) if number % 2 else path.unlink()
    with pytest.raises(InputError, match="both damaged or missing"):
        repair(RemotePath(url), workers=1)
    RemotePath(f"{url}/dataset.copy.json").write_bytes(before["dataset.copy.json"])
    assert repair(RemotePath(url), workers=1).is_original
    assert files_at(url) == before


@pytest.mark.parametrize("name", ["dataset.json", "dataset.copy.json"])
def test_a_flipped_bit_that_changes_no_content(write_manifest, speech, run, tmp_path, file_bytes, name):
    """The case of a letter in an escape sequence: JSON reads the same, and the checksum of the content holds."""
    manifest = write_manifest({"a": speech(0, 0.4)}).rename(tmp_path / "Füße.jsonl")
    run(manifest, tmp_path / "out")
    before = file_bytes(tmp_path / "out")
    assert b"\\u00fc" in before[name]
    (tmp_path / "out" / name).write_bytes(before[name].replace(b"\\u00fc", b"\\u00fC"))
    assert verify(tmp_path / "out") == ["dataset.copy.json: missing or not the same as dataset.json"]
    assert repair(tmp_path / "out").files == (name,)
    assert file_bytes(tmp_path / "out") == before


def test_several_at_once_and_the_command(damaged, file_bytes, capsys):
    before = file_bytes(damaged)
    for name in FILES[1:]:
        (damaged / name).unlink()
    assert main(["repair", str(damaged), "--workers", "1"]) == 0
    assert "every file has its original bytes" in capsys.readouterr().out
    assert file_bytes(damaged) == before
    assert main(["repair", str(damaged)]) == 0
    assert "sound; nothing to do" in capsys.readouterr().out


def test_a_repair_that_was_killed_goes_on(damaged, file_bytes, monkeypatch):
    before = file_bytes(damaged)
    (damaged / "shards/codes.000000.tar").write_bytes(b"half")
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.tools.repair.finalize", interrupted)
        with pytest.raises(KeyboardInterrupt):
            repair(damaged, workers=1)
    assert not (damaged / "dataset.json").exists()
    assert repair(damaged, workers=1).is_original and file_bytes(damaged) == before


def interrupted(*arguments):
    raise KeyboardInterrupt


def test_what_cannot_be_repaired_is_named(damaged, finished, tmp_path, file_bytes):
    (damaged / "shards/codes.000000.tar").unlink()
    with open(tmp_path / "cuts.jsonl", "a") as manifest:
        manifest.write("\n")
    before = file_bytes(damaged)
    with pytest.raises(InputError, match=r"the content of the input was"):
        repair(damaged, workers=1)
    assert file_bytes(damaged) == before
    for path in (damaged / "dataset.json", damaged / "dataset.copy.json"):
        path.write_bytes(path.read_bytes().replace(b"tokens", b"broken"))
    with pytest.raises(InputError, match="both damaged or missing"):
        repair(damaged)
    with pytest.raises(InputError, match=r"holds no dataset\.json"):
        repair(tmp_path / "nothing")


def test_other_audio_makes_other_bytes_and_that_is_said(damaged, speech, tmp_path, capsys):
    import soundfile

    soundfile.write(tmp_path / "audio/0.wav", speech(99, 0.3), 16000, subtype="FLOAT")
    (damaged / "shards/codes.000000.tar").unlink()
    assert main(["repair", str(damaged), "--workers", "1"]) == 1
    assert "other bytes than before" in capsys.readouterr().out
    assert verify(damaged) == []


def test_audio_that_is_gone_is_told_and_found_again(damaged, tmp_path, capsys, file_bytes, run):
    before = file_bytes(damaged)
    (tmp_path / "audio/0.wav").rename(tmp_path / "0.wav")
    (damaged / "shards/codes.000000.tar").unlink()
    assert main(["repair", str(damaged), "--workers", "1"]) == 1
    assert "1 cut can no longer be read" in capsys.readouterr().out
    (tmp_path / "0.wav").rename(tmp_path / "audio/0.wav")
    run(tmp_path / "cuts.jsonl", damaged, shard_cuts=2, pack=True, retry_quarantined=True)
    assert file_bytes(damaged) == before


def test_a_retry_encodes_only_what_had_failed(damaged, write_manifest, tiny_codec_dir, tmp_path, run, monkeypatch):
    from pipelines.sources import audio

    manifest, read = tmp_path / "cuts.jsonl", []
    for i in (1, 6):
        (tmp_path / f"{i}.wav").rename(tmp_path / f"audio/{i}.wav")
    read_resampled = audio.read_resampled

    def spy(planned, *rest):
        read.append(planned.id)
        return read_resampled(planned, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(audio, "read_resampled", spy)
        totals = run(manifest, damaged, shard_cuts=2, pack=True, retry_quarantined=True)
    assert sorted(set(read)) == ["cut-1", "cut-2", "cut-3", "cut-6"]
    assert (totals["cuts"], totals["quarantined"]) == (6, 2)
    run(manifest, tmp_path / "undisturbed", shard_cuts=2, pack=True)
    for path in (tmp_path / "undisturbed").rglob("*"):
        if path.is_file():
            assert (damaged / path.relative_to(tmp_path / "undisturbed")).read_bytes() == path.read_bytes()
    assert [json.loads(line)["shard"] for line in Layout(damaged).quarantine.read_text().splitlines()] == [1, 1]


def test_a_retry_of_nothing_is_nothing(finished, audio_folder, run, tmp_path, file_bytes):
    out = shutil.copytree(finished, tmp_path / "out")
    run(audio_folder, out, retry_quarantined=True)
    assert file_bytes(out) == file_bytes(finished)


def test_packing_changes_no_other_file(finished, audio_folder, tiny_codec_dir, tmp_path, file_bytes):
    from pipelines.bulk.encoding import Encoding

    sharding = Sharding(cuts=5, pack=True)
    out = tmp_path / "out"
    tokenize(Job(str(audio_folder), out, str(tiny_codec_dir), sharding, Encoding(6.0), executor=Inline()))
    packed, plain = file_bytes(out), file_bytes(finished)
    assert {name for name in packed if name not in plain} == {f"packed/codes.{i:06d}.bits" for i in range(5)}
    assert all(packed[name] == plain[name] for name in plain if name.startswith(("shards/", "index/")))
    assert np.array_equal(verify(out), [])
