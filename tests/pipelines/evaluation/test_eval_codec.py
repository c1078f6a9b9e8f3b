"""`eval-codec` end to end on short synthesized clips: the table, the JSON and the page."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pipelines.evaluation.evaluate import Options, evaluate
from pipelines.evaluation.measures import ClipJob, means, measure_clip
from slm.cli import main
from tokenizer.metrics.words import WordErrors

SYSTEMS = ["codec", "latents not binarised", "encoder features"]
SYSTEMS += ["0.1% of bits flipped", "1.0% of bits flipped", "5.0% of bits flipped"]


def voice(seed: int, seconds: float) -> np.ndarray:
    """A buzz with pauses whose pitch wanders, loud enough for every measure: float32 [S] at 16 kHz."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(16_000 * seconds)) / 16_000
    phase = 2 * np.pi * np.cumsum(130 + 30 * np.sin(5 * t + seed)) / 16_000
    wave = sum(np.sin(k * phase + k * k) / k for k in range(1, 20)) * (np.sin(9 * t) > -0.5)
    return (0.1 * wave + 0.002 * rng.standard_normal(len(t))).astype(np.float32)


@pytest.fixture
def manifest(write_manifest) -> str:
    """Two sources of one and two clips, and a clip that is too short; one text is hostile to HTML."""
    seconds = {"a-1": 1.2, "b-1": 1.5, "b-2": 1.0, "b-short": 0.3}
    path = write_manifest({name: voice(i, length) for i, (name, length) in enumerate(seconds.items())})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["supervisions"][0]["custom"] = {"source": line["id"][0]}
    lines[0]["supervisions"][0]["text"] = "<script>alert(1)</script> & co"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


class Tags(HTMLParser):
    """Counts tags, and fails where they do not nest."""

    EMPTY = ("meta", "rect")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.addresses += [value or "" for name, value in attributes if name in ("src", "data-src", "href")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_table_json_and_page(manifest: str, tiny_codec_dir: Path, tmp_path: Path, capsys) -> None:
    options = ["--codec", str(tiny_codec_dir), "--min-seconds", "0.5", "--workers", "1"]
    files = ["--json", str(tmp_path / "out.json"), "--html", str(tmp_path / "out.html")]
    assert main(["eval-codec", "--manifest", manifest, *options, *files]) == 0
    table = capsys.readouterr().out
    for words in (*SYSTEMS, "mean of sources", "voicing %", "static model", "real time", "ask for them with --models"):
        assert words in table

    result = json.loads((tmp_path / "out.json").read_text())
    assert list(result["systems"]) == SYSTEMS
    codec = result["systems"]["codec"]
    assert {source: row["clips"] for source, row in codec["sources"].items()} == {"a": 1, "b": 2}
    for measure in ("stoi", "mel_db", "stft", "voicing_error"):
        of_sources = [row[measure] for row in codec["sources"].values()]
        assert codec["mean_over_sources"][measure] == pytest.approx(sum(of_sources) / 2)
    assert codec["bitrate"] == 400 == result["codes"]["bits_per_second"]["nominal"]
    assert 0 < result["codes"]["bits_per_second"]["order0_entropy"] <= 400
    assert result["codes"]["tokens"] == 60 + 75 + 50
    assert result["rounding"]["streaming"]["bits"] == 8 * 185
    assert result["speed"]["streaming_times_real_time"] > 0

    page = (tmp_path / "out.html").read_text()
    tags = Tags(page)
    assert tags.count["article"] == tags.count["audio"] == 3 and tags.count["svg"] == 6
    assert tags.count["button"] == 3 * (1 + len(SYSTEMS)) and tags.count["script"] == 1
    assert all(address.startswith(("data:audio/mpeg;base64,", "#")) for address in tags.addresses)
    assert "&lt;script&gt;alert(1)" in page


def test_json_alone_is_the_whole_output(manifest: str, tiny_codec_dir: Path, capsys) -> None:
    options = ["--codec", str(tiny_codec_dir), "--min-seconds", "0.5", "--workers", "1", "--per-source", "1", "--json"]
    assert main(["eval-codec", "--manifest", manifest, *options]) == 0
    assert json.loads(capsys.readouterr().out)["systems"]["codec"]["sources"]["b"]["clips"] == 1


def test_no_clip_and_no_folder_are_said_before_any_work(manifest: str, tiny_codec_dir: Path, tmp_path, capsys) -> None:
    command = ["eval-codec", "--manifest", manifest, "--codec", str(tiny_codec_dir)]
    assert main([*command, "--min-seconds", "9"]) == 2
    assert "no clip of at least 9.0 s; lower --min-seconds" in capsys.readouterr().err
    assert main([*command, "--html", str(tmp_path / "nowhere/out.html")]) == 2
    assert "nowhere does not exist; make it first" in capsys.readouterr().err
    assert main([*command, "--workers", "0"]) == 2
    assert "--workers is 0, expected at least 1" in capsys.readouterr().err


def test_a_codec_for_whole_utterances_is_measured_too(manifest: str, whole_codec) -> None:
    result, sounds = evaluate(whole_codec, Options(manifest, min_seconds=0.5, page_clips=1))
    assert list(result["systems"]) == SYSTEMS and "streaming" not in result["rounding"]
    assert result["latency_ms"] is None and [sound.clip.id for sound in sounds] == ["a-1", "b-1"]


@pytest.mark.slow
def test_worker_processes_measure_the_same(manifest: str, tiny_codec) -> None:
    one, two = (evaluate(tiny_codec, Options(manifest, 0.5, per_source=1, workers=workers))[0] for workers in (1, 2))
    for name, system in one["systems"].items():
        for measure, value in system["mean_over_sources"].items():
            other = two["systems"][name]["mean_over_sources"][measure]
            # A product of matrices may be summed in another order in another process.
            assert other == (value if value is None else pytest.approx(value, rel=1e-9)), (name, measure)


def test_word_errors_are_pooled_and_other_measures_averaged() -> None:
    rows = [
        {"stoi": 0.5, "pesq_wb": None, "wer": WordErrors(1, 1)},
        {"stoi": 0.7, "pesq_wb": 2.0, "wer": WordErrors(1, 9)},
    ]
    found = means(rows)
    assert found["stoi"] == pytest.approx(0.6) and found["pesq_wb"] == 2 and found["wer"] == 0.2
    assert found["dwer"] is None


def test_content_is_measured_against_text_and_against_the_original(monkeypatch) -> None:
    wave = voice(3, 1.0)
    heard = {wave.tobytes(): "some old words", (wave / 2).tobytes(): "some words"}
    monkeypatch.setattr("pipelines.evaluation.measures.recognise", lambda wave: heard[wave.tobytes()])
    rows = measure_clip(ClipJob("a", wave, {"codec": wave / 2}, "some old word", content=True))
    assert rows["original"] == {"wer": (1, 3)}
    assert rows["codec"]["wer"] == (2, 3) and rows["codec"]["dwer"] == (1, 3)


def test_package_judges_hear_every_system_but_those_with_flipped_bits(manifest: str, tiny_codec, monkeypatch) -> None:
    heard: list[int] = []

    def recognise(wave: np.ndarray) -> str:
        heard.append(len(wave))
        return "script alert 1 script & co" if len(heard) % 2 else "script alert"

    package = {"dnsmos": lambda original, wave: 2.5, "speaker_ge2e": lambda original, wave: 0.5}
    monkeypatch.setattr("pipelines.evaluation.evaluate.load_package_judges", lambda: (package, {"x": "not there"}))
    monkeypatch.setattr("pipelines.evaluation.evaluate.load_recogniser", lambda model: recognise)
    result, _ = evaluate(tiny_codec, Options(manifest, min_seconds=0.5, judges=True, recogniser="base"))
    systems = result["systems"]
    assert list(systems) == ["original", *SYSTEMS] and result["recogniser"] == "base"
    assert systems["original"]["mean_over_sources"]["dnsmos"] == 2.5
    assert systems["original"]["mean_over_sources"]["speaker_ge2e"] is None
    assert systems["codec"]["mean_over_sources"]["speaker_ge2e"] == 0.5
    # Of each clip first the original is heard, then the codec and its two ceilings: long, short, long, short.
    assert len(heard) == 3 * 4
    assert systems["codec"]["sources"]["a"]["dwer_recogniser"] == pytest.approx(3 / 5)
    assert systems["latents not binarised"]["sources"]["a"]["dwer_recogniser"] == 0
    assert systems["1.0% of bits flipped"]["sources"]["a"].get("dwer_recogniser") is None
    assert systems["1.0% of bits flipped"]["sources"]["a"]["dnsmos"] == 2.5
    assert result["not_measured"]["x"] == "not there" and "dnsmos, speaker_ge2e" not in str(result["not_measured"])


def test_a_recogniser_that_cannot_be_had_leaves_its_columns_empty(manifest: str, tiny_codec, monkeypatch) -> None:
    monkeypatch.setattr("pipelines.evaluation.evaluate.load_package_judges", lambda: ({}, {}))
    options = Options(manifest, min_seconds=0.5, per_source=1, judges=True, recogniser="/nowhere/model")
    result, _ = evaluate(tiny_codec, options)
    assert result["recogniser"] is None and "original" not in result["systems"]
    assert "recogniser '/nowhere/model'" in result["not_measured"]["wer_recogniser, dwer_recogniser"]
