"""Merging and splitting move cuts and codes about, and change none."""

import contextlib
import json
import shutil

import pytest

from pipelines.bulk.plan import Sharding
from pipelines.dataset.token_dataset import TokenDataset
from pipelines.format.description import read_description
from pipelines.format.layout import Layout
from pipelines.format.shards import stored_cuts
from pipelines.storage.folders import RemotePath
from pipelines.tools import rewrite
from pipelines.tools.rewrite import merge, part_of, split
from pipelines.tools.verify import verify
from slm.cli import main
from tests.pipelines.conftest import files_at
from tokenizer.errors import InputError


@pytest.fixture
def failing(write_manifest, speech, run, tmp_path):
    """A dataset with two cuts in quarantine; the first of its ids is twice in it."""
    manifest = write_manifest({f"speaker 0/take.{i:02d}.wav": speech(i, 0.3 + i / 20) for i in range(7)})
    for i in (2, 5):
        (tmp_path / f"audio/{i}.wav").unlink()
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join([*lines, lines[0]]))
    run(manifest, tmp_path / "failing", shard_cuts=3)
    return tmp_path / "failing"


def codes_by_id(*folders):
    datasets = [TokenDataset(folder) for folder in folders]
    return sorted((d.cut_id(i), d.codes(i).tolist()) for d in datasets for i in range(len(d)))


def test_writing_a_shard_again_gives_its_bytes(finished, tmp_path, file_bytes):
    """Merging with nothing but another order of shards keeps every byte of them."""
    from pipelines.tools.rewrite import DatasetWriter, rewriting

    layout, codec = Layout(tmp_path / "out"), TokenDataset(finished).codec_entry
    with rewriting(layout):
        writer = DatasetWriter(layout, codec, {}, Sharding(cuts=5))
        for shard in range(5):
            for cut, codes in stored_cuts(Layout(finished), shard):
                writer.add(cut, codes)
        writer.close()
    before, after = file_bytes(finished), file_bytes(tmp_path / "out")
    assert {name for name in before if before[name] != after[name]} == {"dataset.json", "dataset.copy.json"}


def test_who_has_lost_out_to_another_run_writes_and_removes_nothing(finished, tmp_path, file_bytes, monkeypatch):
    """Behind a URL, where a lease is lost by silence, `only_run` gives a check that raises."""
    layout, lost, before = Layout(tmp_path / "out"), [], {}

    def check():
        if lost:
            raise InputError("another run has taken over")

    layout.out.mkdir()
    monkeypatch.setattr(rewrite, "only_run", lambda layout: contextlib.nullcontext(check))
    with pytest.raises(InputError, match="taken over"), rewrite.rewriting(layout) as still_held:
        codec = TokenDataset(finished).codec_entry
        writer = rewrite.DatasetWriter(layout, codec, {}, Sharding(cuts=5), still_held)
        for shard in range(2):
            for cut, codes in stored_cuts(Layout(finished), shard):
                writer.add(cut, codes)
            before = before or file_bytes(layout.out)
            lost.append(shard)
    assert before and file_bytes(layout.out) == before


def test_merged(finished, failing, tmp_path):
    totals = merge([finished, failing], tmp_path / "out", Sharding(cuts=10, pack=True)).totals
    assert (totals.planned, totals.cuts, totals.quarantined) == (32, 30, 2)
    assert totals.duplicate_ids == 3  # one of its own, two names that both have
    assert codes_by_id(tmp_path / "out") == codes_by_id(finished, failing)
    assert verify(tmp_path / "out") == []
    assert len({entry["shard"] for entry in quarantine(tmp_path / "out")} - {0, 1, 2, 3}) == 0


@pytest.mark.parametrize("command", ["merge", "split", "report"])
def test_a_description_that_was_changed_is_refused(finished, tmp_path, capsys, command):
    shutil.copytree(finished, tmp_path / "changed")
    path = tmp_path / "changed/dataset.json"
    path.write_bytes(path.read_bytes().replace(b'"tokens": ', b'"tokens": 1', 1))
    changed, out = str(tmp_path / "changed"), str(tmp_path / "out")
    arguments = {"merge": [out, str(finished), changed], "split": [changed, out, "a=1"], "report": [changed]}
    assert main([command, *arguments[command]]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "changed/dataset.json: its content does not match its checksum; `focalstream repair" in line
    assert not (tmp_path / "out").exists()


def quarantine(out):
    return [json.loads(line) for line in Layout(out).quarantine.read_text().splitlines()]


def test_split_by_cut_and_merged_again(finished, failing, tmp_path, capsys):
    everything = tmp_path / "all"
    merge([finished, failing], everything, Sharding(hours=1.0))
    arguments = ["split", str(everything), str(tmp_path / "parts"), "train=0.6", "test=0.4", "--shard-cuts", "4"]
    assert main(arguments) == 0
    parts = [tmp_path / "parts/train", tmp_path / "parts/test"]
    assert all(verify(part) == [] and len(TokenDataset(part)) >= 5 for part in parts)
    assert codes_by_id(*parts) == codes_by_id(everything)
    assert len(quarantine(parts[0])) + len(quarantine(parts[1])) == 2
    ids = [{cut_id for cut_id, _ in codes_by_id(part)} for part in parts]
    assert not ids[0] & ids[1]
    assert main(arguments) == 2
    assert "give another OUT" in capsys.readouterr().err


def test_on_a_store_as_on_disk(finished, failing, tmp_path, file_bytes, memory_store, capsys):
    sources = [memory_store(folder) for folder in (finished, failing)]
    for folders, out in (([finished, failing], str(tmp_path / "all")), (sources, "memory://rewritten/all")):
        assert main(["merge", out, *map(str, folders), "--shard-hours", "1"]) == 0
        assert main(["split", out, out.replace("all", "parts"), "train=0.6", "test=0.4", "--shard-cuts", "4"]) == 0
    for name in ("all", "parts/train", "parts/test"):
        here, there = file_bytes(tmp_path / name), files_at(f"memory://rewritten/{name}")
        assert here.keys() == there.keys()
        assert {file for file in here if here[file] != there[file]} == {"dataset.json", "dataset.copy.json"}  # paths
    assert verify(RemotePath("memory://rewritten/parts/train")) == []
    assert main(["merge", f"{sources[0]}/inside", *sources]) == 2
    assert "lies in" in capsys.readouterr().err


def test_a_speaker_stays_together_whatever_else_is_there(run, write_manifest, speech, tmp_path):
    manifest = write_manifest({f"cut-{i}": speech(i, 0.2) for i in range(30)})
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for i, line in enumerate(lines):
        line["supervisions"][0]["speaker"] = f"speaker {i % 10}"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(manifest, tmp_path / "whole", shard_cuts=30)
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines[:20]))
    run(manifest, tmp_path / "smaller", shard_cuts=30)
    shares = {"a": 0.5, "b": 0.5}
    for name in ("whole", "smaller"):
        split(tmp_path / name, tmp_path / f"{name} parts", shares, "speaker", Sharding(cuts=7))
    for part in shares:
        whole, smaller = (speakers(tmp_path / f"{name} parts" / part) for name in ("whole", "smaller"))
        assert whole == smaller and whole
    assert not speakers(tmp_path / "whole parts/a") & speakers(tmp_path / "whole parts/b")


def speakers(out):
    shards = {entry.shard for entry in read_description(Layout(out)).shards}
    return {c.cut["supervisions"][0]["speaker"] for shard in shards for c, _ in stored_cuts(Layout(out), shard)}


def test_shares_are_kept_to_about():
    shares = {"train": 0.9, "dev": 0.06, "test": 0.04}
    found = [part_of(f"id {i}", shares) for i in range(20_000)]
    for name, share in shares.items():
        assert found.count(name) / 20_000 == pytest.approx(share, abs=0.01)  # five standard deviations


@pytest.mark.parametrize("shares", [{"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a/b": 1.0}, {"": 1.0}, {}])
def test_shares_that_make_no_sense(finished, tmp_path, shares):
    with pytest.raises(InputError, match=r"expected positive|not the name of a folder"):
        split(finished, tmp_path / "out", shares, "cut", Sharding(cuts=7))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_merged_leaves_nothing(finished, failing, whole_codec_dir, audio_folder, run, tmp_path):
    run(audio_folder / "speaker 0", tmp_path / "other", codec=str(whole_codec_dir))
    damaged = shutil.copytree(finished, tmp_path / "damaged")
    tar = damaged / "shards/codes.000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    for sources, words in (
        ([finished], "at least 2"),
        ([finished, tmp_path / "other"], "tokenize both with the same codec"),
        ([finished, damaged], "shard 1 is damaged"),
        ([finished, tmp_path / "nothing"], "holds no dataset"),
    ):
        with pytest.raises(InputError, match=words):
            merge(sources, tmp_path / "out", Sharding(cuts=7))
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="give another OUT"):
        merge([finished, failing], finished, Sharding(cuts=7))
