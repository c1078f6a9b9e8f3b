"""The plan holds every cut once, in order, and is refused for any other run."""

import gzip
import itertools
import json
import shutil

import pytest

from pipelines.bulk.plan import Sharding, identify, load_or_make_plan, refuse_difference
from pipelines.bulk.stored_plan import shard_cuts
from pipelines.format.layout import Layout
from pipelines.sources.cuts import Selection, duration
from tokenizer.errors import InputError

CODEC = "f" * 64


def make(tmp_path, durations, sharding, ids=None):
    manifest = tmp_path / "cuts.jsonl"
    lines = [
        {"id": ids[i] if ids else f"cut-{i}", "start": 0.0, "duration": seconds, "channel": 0, "type": "MonoCut"}
        for i, seconds in enumerate(durations)
    ]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    layout = Layout(tmp_path / "out")
    return layout, load_or_make_plan(layout, identify([str(manifest)], Selection(), sharding, {}, CODEC))


@pytest.mark.parametrize("size", [1, 4, 10, 11, 100])
def test_every_cut_is_in_one_shard_in_order(tmp_path, size):
    layout, plan = make(tmp_path, [1.5] * 10, Sharding(cuts=size))
    shards = [[cut.id for cut in shard_cuts(layout, shard)] for shard in range(len(plan.shards))]
    assert list(itertools.chain(*shards)) == [f"cut-{i}" for i in range(10)]
    assert [shard.cuts for shard in plan.shards] == [len(shard) for shard in shards]
    assert all(len(shard) == size for shard in shards[:-1])
    assert (plan.cuts, plan.seconds) == (10, 15.0)


def test_shards_by_hours_are_full_when_they_reach_them(tmp_path):
    _, plan = make(tmp_path, [1000.0, 1000.0, 2000.0, 3600.0, 100.0, 7200.0, 5.0], Sharding(hours=1.0))
    assert [shard.seconds for shard in plan.shards] == [4000.0, 3600.0, 7300.0, 5.0]


def test_durations_that_make_no_sense_count_as_none(tmp_path):
    layout, plan = make(tmp_path, [float("nan"), -1.0, None, "3", True, float("inf"), 2.0], Sharding(cuts=10))
    assert (plan.cuts, plan.seconds) == (7, 2.0)
    assert [cut.seconds for cut in shard_cuts(layout, 0)] == [0.0] * 6 + [2.0]


def test_duration_of_a_mix():
    track = {"cut": {"type": "MonoCut", "duration": 2.0}, "type": "MonoCut"}
    assert duration({"type": "MixedCut", "tracks": [track, {**track, "offset": 1.5}]}) == 3.5


def test_duplicate_ids_get_members_of_their_own_across_shards(tmp_path):
    ids = ["a", "b", "a", "a", "c", "b"]
    layout, plan = make(tmp_path, [1.0] * 6, Sharding(cuts=2), ids)
    members = [cut.member for shard in range(3) for cut in shard_cuts(layout, shard)]
    assert members == ["a", "b", "a~2", "a~3", "c", "b~2"]
    assert plan.duplicate_ids == 3


def test_a_stored_plan_is_taken_up_again(tmp_path):
    layout, plan = make(tmp_path, [1.0] * 5, Sharding(cuts=2))
    before = (layout.work / "plan.json").stat().st_mtime_ns
    assert load_or_make_plan(layout, plan.identity) == plan
    assert (layout.work / "plan.json").stat().st_mtime_ns == before


def test_another_plan_is_refused_and_the_difference_named(tmp_path):
    layout, _ = make(tmp_path, [1.0] * 5, Sharding(cuts=2))
    manifest = [str(tmp_path / "cuts.jsonl")]
    with pytest.raises(InputError, match=r"--shard-cuts was 2, now 3"):
        load_or_make_plan(layout, identify(manifest, Selection(), Sharding(cuts=3), {}, CODEC))
    with pytest.raises(InputError, match=r"--shard-cuts was 2, now not given; --shard-hours was not given, now 2"):
        load_or_make_plan(layout, identify(manifest, Selection(), Sharding(hours=2), {}, CODEC))
    with pytest.raises(InputError, match=r"--codec \(its fingerprint\) was ffff.*, now eeee"):
        load_or_make_plan(layout, identify(manifest, Selection(), Sharding(cuts=2), {}, "e" * 64))
    (tmp_path / "cuts.jsonl").write_text((tmp_path / "cuts.jsonl").read_text() + "\n")
    with pytest.raises(InputError, match=r"the content of the input was"):
        load_or_make_plan(layout, identify(manifest, Selection(), Sharding(cuts=2), {}, CODEC))


def test_files_of_no_run_are_not_mixed_with_new_ones(tmp_path):
    (tmp_path / "out/shards").mkdir(parents=True)
    (tmp_path / "out/shards/codes.000000.tar").write_bytes(b"somebody's")
    with pytest.raises(InputError, match="belong to no known run"):
        make(tmp_path, [1.0], Sharding(cuts=1))


@pytest.mark.parametrize("bad", [{}, {"cuts": 1, "hours": 1.0}, {"cuts": 0}, {"hours": 0.0}, {"hours": float("nan")}])
def test_sharding_wants_one_sensible_size(bad):
    with pytest.raises(InputError, match="expected"):
        Sharding(**bad)


@pytest.mark.parametrize("content", [b"", b'{"identity": {}', b"[1, 2]", b'{"identity": {}, "shards": [{"x": 1}]}'])
def test_a_damaged_plan_is_named(tmp_path, content):
    layout, plan = make(tmp_path, [1.0] * 5, Sharding(cuts=2))
    (layout.work / "plan.json").write_bytes(content)
    with pytest.raises(InputError, match=r"work/plan\.json: the plan of an unfinished run is damaged"):
        load_or_make_plan(layout, plan.identity)


@pytest.mark.parametrize(
    "content", [None, b"no gzip", gzip.compress(b"{broken\n", mtime=0), gzip.compress(b"{}\n", mtime=0)[:-9]]
)
def test_a_damaged_or_missing_list_of_cuts_is_named(tmp_path, content):
    layout, _ = make(tmp_path, [1.0] * 5, Sharding(cuts=2))
    file = layout.work / "plan/000001.jsonl.gz"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    assert [cut.id for cut in shard_cuts(layout, 0)] == ["cut-0", "cut-1"]
    with pytest.raises(InputError, match=r"000001\.jsonl\.gz: the plan of an unfinished run is damaged"):
        shard_cuts(layout, 1)


def test_matches_of_a_glob_that_were_stored_one_by_one_are_those_of_the_glob(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("{}\n")
    stored = identify([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")], Selection(), Sharding(cuts=2), {}, CODEC)
    wanted = identify([str(tmp_path / "*.jsonl")], Selection(), Sharding(cuts=2), {}, CODEC)
    refuse_difference(Layout(tmp_path / "out"), stored, wanted)
    (tmp_path / "c.jsonl").write_text("{}\n")
    wanted = identify([str(tmp_path / "*.jsonl")], Selection(), Sharding(cuts=2), {}, CODEC)
    with pytest.raises(InputError, match="the input was"):
        refuse_difference(Layout(tmp_path / "out"), stored, wanted)


def test_large_manifests_make_large_shards_unless_a_run_began_with_others(tmp_path, monkeypatch):
    from pipelines.commands import corpus_options
    from pipelines.commands.corpus_options import default_shard_hours

    layout, _ = make(tmp_path, [10.0] * 8, Sharding(hours=2.5))
    manifest = str(tmp_path / "cuts.jsonl")
    assert default_shard_hours(manifest) == 1.0 and default_shard_hours(manifest, layout) == 2.5
    monkeypatch.setattr(corpus_options, "LARGE_BYTES", 100)
    assert default_shard_hours(manifest) == 10.0 and default_shard_hours(manifest, layout) == 2.5


def test_any_number_of_processes_gives_the_same_plan(tmp_path, write_manifest, speech, monkeypatch, file_bytes):
    """Lines with paths that only their place beside the manifest resolves, a repeated id, and a Shar folder."""
    from lhotse import CutSet, Recording

    from pipelines.bulk import planned_lines
    from pipelines.sources import blocks

    manifest = write_manifest({f"cut {i}": speech(i, 0.2) for i in range(5)})
    manifest.write_text(manifest.read_text() * 2)
    (tmp_path / "shar").mkdir()
    cuts = CutSet.from_cuts(Recording.from_file(tmp_path / f"audio/{i}.wav").to_cut() for i in range(5))
    cuts.to_shar(tmp_path / "shar", fields={"recording": "wav"}, shard_size=2)
    monkeypatch.setattr(blocks, "BLOCK_LINES", 3)
    monkeypatch.setattr(planned_lines, "LARGE_BYTES", 0)
    identity = identify([str(manifest), str(tmp_path / "shar")], Selection(), Sharding(cuts=4), {}, CODEC)
    plans = [load_or_make_plan(Layout(tmp_path / f"out{n}"), identity, processes=n) for n in (1, 2)]
    assert plans[0] == plans[1] and plans[0].cuts == 15 and plans[0].duplicate_ids == 5
    assert file_bytes(tmp_path / "out1") == file_bytes(tmp_path / "out2")
    # Where the first recording is found decides for lines, too, of which none is found.
    monkeypatch.chdir(tmp_path.parent)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    shutil.copytree(tmp_path / "audio", tmp_path.parent / "here")
    for number, line in enumerate(lines):
        line["recording"]["sources"][0]["source"] = "here/0.wav" if number < 3 else "here/missing.wav"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for processes in (1, 2):
        load_or_make_plan(Layout(tmp_path / f"far{processes}"), identity, processes=processes)
    assert file_bytes(tmp_path / "far1") == file_bytes(tmp_path / "far2")
    with open(manifest, "a") as file:
        file.write("{not json\n")
    with pytest.raises(InputError, match="line 11"):
        load_or_make_plan(Layout(tmp_path / "out3"), identity, processes=2)
