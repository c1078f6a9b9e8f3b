"""Long recordings to cuts to tokens, by two commands."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipelines.format.description import read_description
from pipelines.format.layout import Layout
from pipelines.segmentation.speech_activity import FRAME, SpeechActivity
from slm.cli import main

pytest.importorskip("silero_vad")
SPEECH = Path(__file__).resolve().parents[3] / "slm/demo/speech/audio"


def spoken(names, pause, rng):
    """Demo sentences at 16 kHz with faint noise of `pause` seconds before, between and behind; (wave, spans)."""
    parts, spans, at = [], [], 0.0
    for name in [*names, None]:
        quiet = (1e-4 * rng.standard_normal(round(pause * 16000))).astype(np.float32)
        parts.append(quiet)
        at += pause
        if name:
            wave, rate = soundfile.read(SPEECH / f"{name}.ogg", dtype="float32")
            assert rate == 16000
            parts.append(wave)
            spans.append((at, at + len(wave) / 16000))
            at += len(wave) / 16000
    return np.concatenate(parts), spans


def cuts_in(path):
    with gzip.open(path) as file:
        return [json.loads(line) for line in file]


def test_sentences_become_cuts_and_tokens(tmp_path, capsys, tiny_codec_dir):
    wave, spans = spoken(["ada-01", "ben-02", "cleo-03"], 2.0, np.random.default_rng(1))
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/a.flac", wave, 16000)
    (tmp_path / "in/broken.flac").write_bytes(b"fLaC" + bytes(100))
    words = ["segment", str(tmp_path / "in"), str(tmp_path / "cuts.jsonl.gz"), "--json"]
    assert main([*words, "--dry-run"]) == 0
    dry = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "cuts.jsonl.gz").exists()
    assert main([*words, "--measure"]) == 0
    shown = capsys.readouterr()
    result, cuts = json.loads(shown.out), cuts_in(tmp_path / "cuts.jsonl.gz")
    assert {key: result[key] for key in ("segments", "kept_hours", "failed")} == {
        key: dry[key] for key in ("segments", "kept_hours", "failed")
    }
    assert (result["recordings"], result["failed"], result["segments"]) == (2, 1, len(cuts))
    covered = sum(
        max(0.0, min(end, cut["start"] + cut["duration"]) - max(start, cut["start"]))
        for start, end in spans
        for cut in cuts
    )
    assert covered > 0.85 * sum(end - start for start, end in spans)
    assert sum(cut["duration"] for cut in cuts) < sum(end - start for start, end in spans) + 0.5 * len(spans)
    assert all(cut["custom"]["bandwidth_hz"] > 2000 and cut["custom"]["level_dbfs"] > -60 for cut in cuts)
    assert [cut["id"] for cut in cuts] == [f"a.flac-{i:05d}" for i in range(len(cuts))]
    out = tmp_path / "out"
    assert main(["tokenize", str(tmp_path / "cuts.jsonl.gz"), str(out), "--codec", str(tiny_codec_dir)]) == 0
    assert read_description(Layout(out)).totals.cuts == len(cuts)


def test_the_model_goes_on_from_block_to_block():
    wave, _ = spoken(["hugh-01"], 0.5, np.random.default_rng(2))
    activity = SpeechActivity()
    whole = activity.probabilities([wave])
    assert len(whole) == -(-len(wave) // FRAME) and whole.max() > 0.9 and whole[:5].max() < 0.5
    cuts = np.sort(np.random.default_rng(3).integers(0, len(wave), 7))
    # another number of frames a call sums in another order
    np.testing.assert_allclose(activity.probabilities(np.split(wave, cuts)), whole, atol=1e-4)


def test_supervisions_and_starts_follow(tmp_path, capsys):
    from lhotse import CutSet, Recording, SupervisionSegment

    wave, spans = spoken(["ada-01", "ben-02"], 2.0, np.random.default_rng(4))
    soundfile.write(tmp_path / "a.wav", wave, 16000)
    cut = Recording.from_file(tmp_path / "a.wav").to_cut()
    cut.supervisions = [
        SupervisionSegment(f"s{i}", cut.recording_id, start, end - start, text=f"text {i}")
        for i, (start, end) in enumerate(spans)
    ]
    part = cut.truncate(offset=1.0, preserve_id=True)
    CutSet.from_cuts([part]).to_file(tmp_path / "in.jsonl")
    assert main(["segment", str(tmp_path / "in.jsonl"), str(tmp_path / "cuts.jsonl.gz")]) == 0
    for cut in CutSet.from_file(tmp_path / "cuts.jsonl.gz"):
        for supervision in cut.supervisions:
            start, end = spans[int(supervision.id[1:])]
            assert abs(cut.start + supervision.start - start) < 1e-3
            assert abs(cut.start + supervision.end - end) < 1e-3
    assert {s.text for cut in CutSet.from_file(tmp_path / "cuts.jsonl.gz") for s in cut.supervisions} == {
        "text 0",
        "text 1",
    }


def test_limits_drop_and_are_counted(tmp_path, capsys):
    wave, _ = spoken(["ada-01"], 1.0, np.random.default_rng(5))
    soundfile.write(tmp_path / "a.wav", wave, 16000)
    words = ["segment", str(tmp_path / "a.wav"), str(tmp_path / "cuts.jsonl.gz"), "--min-level", "-1", "--json"]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["segments"] == 0 and result["dropped_by_limits"] == {
        "level_dbfs": result["dropped_by_limits"]["level_dbfs"]
    }
    assert cuts_in(tmp_path / "cuts.jsonl.gz") == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["in", "cuts.txt"], "expected a name that ends in"),
        (["in", "nowhere/cuts.jsonl"], "folder does not exist"),
        (["in", "cuts.jsonl", "--min-seconds", "50"], "expected 0 or more"),
        (["in", "cuts.jsonl"], "none of 1 recording in it can be read"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.wav").write_bytes(b"RIFF\0\0\0\0WAVE")
    assert main(["segment", *words]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.glob(".segment-*"))


def test_segments_are_dropped_by_their_predicted_opinion_score(tmp_path, capsys, monkeypatch):
    """A judge that goes by the level stands for the network, whose weights are in a package."""
    from tokenizer.metrics import package_judges

    heard = []

    def judge(original, wave):
        heard.append(len(wave))
        return 4.0 if np.abs(wave).max() > 0.1 else 2.0

    loud = spoken(["ada-01"], 2.0, np.random.default_rng(4))[0]
    soundfile.write(tmp_path / "a.flac", np.concatenate([loud, 0.08 / np.abs(loud).max() * loud]), 16000)
    words = ["segment", str(tmp_path / "a.flac"), str(tmp_path / "cuts.jsonl.gz"), "--json"]
    monkeypatch.setattr(package_judges, "load_dnsmos", lambda: judge)
    found = {}
    for limit in ("1", "3.5"):
        assert main([*words, "--min-dnsmos", limit]) == 0
        found[limit] = (json.loads(capsys.readouterr().out), [cut["custom"]["dnsmos"] for cut in cuts_in(words[2])])
    assert set(found["1"][1]) == {2.0, 4.0} and set(found["3.5"][1]) == {4.0}
    assert found["3.5"][0]["dropped_by_limits"] == {"dnsmos": found["1"][1].count(2.0)}
    assert main([*words, "--min-dnsmos", "9"]) == 2
    assert "expected an opinion score from 1 to 5" in capsys.readouterr().err


def test_without_its_package_the_judge_is_one_line(tmp_path, capsys, monkeypatch):
    from tokenizer.metrics import package_judges

    def missing(package):
        raise ImportError(f"{package} is not installed")

    soundfile.write(tmp_path / "a.flac", spoken(["ada-01"], 0.5, np.random.default_rng(4))[0], 16000)
    monkeypatch.setattr(package_judges, "package_folder", missing)
    assert main(["segment", str(tmp_path / "a.flac"), str(tmp_path / "c.jsonl"), "--min-dnsmos", "3"]) == 2
    assert "speechmos is not installed; pip install focalstream[judges]" in capsys.readouterr().err
    assert not (tmp_path / "c.jsonl").exists()
