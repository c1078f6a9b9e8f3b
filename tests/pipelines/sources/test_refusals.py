"""Manifests that ask for too much: local files from afar, compressed nothing, impossible rates and lengths."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile

from pipelines.sources.audio import read_wave
from pipelines.sources.cuts import BLANK_LINES, Selection, SourceCut
from pipelines.sources.manifests import read_cuts
from tokenizer.errors import InputError


@pytest.fixture
def cut(tmp_path: Path) -> dict[str, Any]:
    from lhotse import Recording

    wave = 0.1 * np.random.default_rng(6).standard_normal(16000)
    soundfile.write(tmp_path / "a.wav", wave, 16000)
    return Recording.from_file(tmp_path / "a.wav").to_cut().to_dict()


@pytest.mark.parametrize(("hosts", "allowed"), [((), False), (("file://",), True), (("https://x",), False)])
def test_a_manifest_from_a_url_reads_files_of_this_machine_only_if_allowed(
    cut: dict[str, Any], hosts: tuple[str, ...], allowed: bool
) -> None:
    with fsspec.open("memory://afar/cuts.jsonl", "wb") as file:
        file.write(json.dumps(cut).encode() + b"\n")
    (item,) = read_cuts(["memory://afar/cuts.jsonl"], Selection(allow_hosts=hosts).access)
    if allowed:
        assert len(read_wave(item, 16000)) == 16000
        return
    with pytest.raises(InputError, match=r"refused, its manifest came from a URL and names .*--allow-host file://"):
        read_wave(item, 16000)


def test_a_manifest_from_a_url_names_nothing_in_the_working_directory(
    cut: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cut["recording"]["sources"][0]["source"] = "a.wav"
    with fsspec.open("memory://afar/cuts.jsonl", "wb") as file:
        file.write(json.dumps(cut).encode() + b"\n")
    (item,) = read_cuts(["memory://afar/cuts.jsonl"], Selection(allow_hosts=("file://",)).access)
    assert item.cut["recording"]["sources"][0]["source"] == "memory://afar/a.wav"


def test_compressed_blank_lines_are_refused(cut: dict[str, Any], tmp_path: Path) -> None:
    line = json.dumps(cut).encode()
    with gzip.open(tmp_path / "few.jsonl.gz", "wb") as file:
        file.write((b"\n" * (BLANK_LINES // 2) + line) * 4)
    assert len(list(read_cuts([str(tmp_path / "few.jsonl.gz")]))) == 4
    with gzip.open(tmp_path / "many.jsonl.gz", "wb") as file:
        file.write(line + b"\n" * (BLANK_LINES + 2))
    with pytest.raises(InputError, match="more than 100,000 blank lines"):
        list(read_cuts([str(tmp_path / "many.jsonl.gz")]))


@pytest.mark.parametrize("rate", [0, -1, "16000", None, float("nan")])
def test_an_impossible_rate_is_called_so(cut: dict[str, Any], rate: Any) -> None:
    wrong = copy.deepcopy(cut)
    wrong["recording"]["sampling_rate"] = rate
    with pytest.raises(InputError, match=r"zero length, the sampling_rate of its recording is .*expected a number"):
        read_wave(SourceCut(wrong), 16000)


def test_a_cut_of_ages_is_refused_in_few_words(cut: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="zero length, the cut's duration is 1e\\+300 s") as found:
        read_wave(SourceCut({**cut, "duration": 1e300}), 16000)
    assert len(str(found.value)) < 300


def test_a_cut_of_no_channel_is_called_so(cut: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no such channel"):
        read_wave(SourceCut({**cut, "type": "MultiCut", "channel": []}), 16000)
