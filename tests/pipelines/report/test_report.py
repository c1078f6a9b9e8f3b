"""The figures of a report are those of the dataset, counted the slow way; its page needs nothing but itself."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from itertools import groupby

import numpy as np
import pytest

from pipelines.bulk.progress import read_speed
from pipelines.dataset.token_dataset import TokenDataset
from pipelines.report import figures as figures_module
from pipelines.report.figures import DURATION_STEP, LONGEST_RUN, collect, run_tokens
from slm.cli import main
from tokenizer.errors import InputError
from tokenizer.metrics.codes import code_usage


@pytest.fixture
def spoken(write_manifest, speech, run, tmp_path):
    """Seven cuts of 0.5 to 3.5 s by two speakers, two of them quarantined; ids and texts are hostile to HTML."""
    manifest = write_manifest({f"<b>{i}": speech(i, 0.5 + i / 2) for i in range(7)})
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for i, line in enumerate(lines):
        line["supervisions"][0] |= {"speaker": f"s{i % 2}", "text": "<script>alert(1)</script>", "language": "de"}
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for i in (2, 3):
        (tmp_path / f"audio/{i}.wav").unlink()
    run(manifest, tmp_path / "out", shard_cuts=2, pack=True, log=tmp_path / "log.jsonl")
    return tmp_path / "out"


def test_figures_are_those_of_the_dataset(spoken):
    found, dataset = collect(spoken), TokenDataset(spoken)
    codes = [dataset.codes(i) for i in range(len(dataset))]
    assert found.codes.tolist() == np.bincount(np.concatenate(codes), minlength=256).tolist()
    assert found.usage() == code_usage(np.concatenate(codes), 256)
    is_set = np.concatenate(codes)[:, None] >> np.arange(7, -1, -1) & 1
    np.testing.assert_allclose(found.bit_shares(), is_set.mean(axis=0), rtol=1e-12)  # sums in another order
    assert found.speakers == {"s0": sum(map(len, (codes[0], codes[2], codes[4]))), "s1": len(codes[1]) + len(codes[3])}
    assert set(found.languages) == {"de"} and found.languages.total() == sum(map(len, codes))
    assert found.durations == Counter(int(seconds / DURATION_STEP) for seconds in (0.5, 1.0, 2.5, 3.0, 3.5))
    assert {reason: count for reason, (count, _) in found.reasons.items()} == {"missing file": 2}
    folders = ("codes", "cuts", "indexes", "packed", "ledgers")
    on_disk = sum(path.stat().st_size for path in spoken.rglob("*") if path.is_file() and "dataset." not in path.name)
    assert set(found.sizes) == set(folders) and found.sizes.total() == on_disk
    assert found.ideal_bytes == sum(map(len, codes))  # 8 bits each


def test_runs_are_those_of_groupby():
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, 2, n).astype(np.uint16) for n in (1, 40, 7)] + [np.full(3 * LONGEST_RUN, 1, np.uint16)]
    expected = Counter()
    for cut in codes:
        for _, run in groupby(cut.tolist()):
            length = len(list(run))
            expected[min(length, LONGEST_RUN)] += length
    found = run_tokens(codes)
    assert {length: int(tokens) for length, tokens in enumerate(found) if tokens} == expected
    assert run_tokens([]).sum() == 0


def test_some_shards_stand_for_all(finished, monkeypatch):
    monkeypatch.setattr(figures_module, "MOST_NAMES", 1)
    read = []
    read_shard = figures_module.read_shard
    monkeypatch.setattr(
        figures_module, "read_shard", lambda layout, shard: read.append(shard) or read_shard(layout, shard)
    )
    found = collect(finished, sample_shards=3)
    assert read == [0, 2, 4] and found.shards_read == 3
    assert found.to_dict()["totals"]["cuts"] == 24 and sum(found.durations.values()) == 14
    assert len(found.speakers) <= 2  # memory does not grow with the names


def test_page_json_and_lines(spoken, tmp_path, capsys):
    html = tmp_path / "report.html"
    options = ["--html", str(html), "--samples", "4", "--log", str(tmp_path / "log.jsonl")]
    assert main(["report", str(spoken), *options]) == 0
    printed = capsys.readouterr().out
    assert "5 cuts" in printed and "2 of 7 planned cuts (28.6 %)" in printed and "x real time" in printed
    page = html.read_text()
    assert page.count("<audio") == 4 and page.count("data:audio/mpeg") == 4
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "&lt;b&gt;2" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert main(["report", str(spoken), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["shards_read"] == 3 and result["bytes_per_hour"]["all"] > result["bytes_per_hour"]["ideal"]


def test_a_page_without_its_codec_says_so(spoken, whole_codec_dir, tmp_path, capsys):
    html = tmp_path / "report.html"
    assert main(["report", str(spoken), "--html", str(html), "--codec", str(whole_codec_dir)]) == 0
    assert "no samples: codec" in capsys.readouterr().err
    assert "No samples: codec" in html.read_text() and "<audio" not in html.read_text()


def test_a_dataset_of_nothing_has_a_page(write_manifest, speech, run, tmp_path):
    manifest = write_manifest({"a": speech(0, 0.4)})
    (tmp_path / "audio/0.wav").unlink()
    run(manifest, tmp_path / "out", max_quarantine_rate=1.0)
    assert main(["report", str(tmp_path / "out"), "--html", str(tmp_path / "r.html")]) == 0
    assert "There are no tokens." in (tmp_path / "r.html").read_text()


def test_what_cannot_be_reported_is_one_line(finished, tmp_path, capsys):
    out = shutil.copytree(finished, tmp_path / "out")
    (out / "shards/cuts.000003.jsonl.gz").write_bytes(b"damaged")
    for arguments, words in (
        ([str(tmp_path)], "holds no dataset.json"),
        ([str(out)], "shard 3 cannot be read"),
        ([str(finished), "--sample-shards", "0"], "--sample-shards is 0"),
        ([str(finished), "--html", str(tmp_path / "nowhere/r.html")], "does not exist"),
        ([str(finished), "--log", str(tmp_path / "none")], "the log cannot be read"),
    ):
        assert main(["report", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


def test_the_log_of_runs_leaves_out_the_pause_between_them(tmp_path):
    lines = [
        {"event": "begin", "time": 1000.0, "total_seconds": 7200.0, "done_seconds": 0.0},
        {"event": "shard", "time": 1036.0, "shard": 0, "seconds": 1800.0},
        {"event": "begin", "time": 90000.0, "total_seconds": 7200.0, "done_seconds": 1800.0},
        {"event": "shard", "time": 90018.0, "shard": 1, "seconds": 3600.0},
    ]
    log = tmp_path / "log"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "sha')  # a kill
    speed = read_speed(log)
    assert speed.points == [(0, 0), (0.01, 0.5), (0.015, 1.5)] and speed.runs == 2
    assert speed.times_real_time == pytest.approx(100)
    log.write_text(json.dumps(lines[0]))
    with pytest.raises(InputError, match="no shard was done"):
        read_speed(log)


def test_the_log_is_no_part_of_the_dataset(spoken, run, tmp_path, file_bytes):
    run(tmp_path / "cuts.jsonl", tmp_path / "other", shard_cuts=2, pack=True)
    assert file_bytes(tmp_path / "other") == file_bytes(spoken)
    with pytest.raises(InputError, match=r"lies in .*other, whose bytes depend on no clock"):
        run(tmp_path / "cuts.jsonl", tmp_path / "other", log=tmp_path / "other/log")


def test_where_nothing_could_be_tokenized_there_is_no_size_an_hour(write_manifest, speech, run, tmp_path, capsys):
    manifest = write_manifest({f"cut-{i}": speech(i, 0.4) for i in range(3)})
    for i in range(3):
        (tmp_path / f"audio/{i}.wav").unlink()
    run(manifest, tmp_path / "out", max_quarantine_rate=1.0)
    assert main(["report", str(tmp_path / "out"), "--html", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out
    assert "in all, and no audio." in said and "3 of 3 planned cuts (100 %)" in said
    assert "an hour" not in said and "an hour" not in (tmp_path / "page.html").read_text()
    assert collect(tmp_path / "out").to_dict()["bytes_per_hour"] == {}
