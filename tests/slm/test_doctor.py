"""`focalstream doctor` says what it found and chose, and how fast the shipped models are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slm import doctor
from slm.cli import main
from tokenizer import machine


def test_what_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["doctor", "--seconds", "0.05", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["found"]["instructions"] == list(machine.processor().instructions)
    precision = report["chosen"]["training precision on cpu"]
    assert precision["value"] == machine.training_precision("cpu").value and precision["reason"]
    assert report["versions"]["torch"] and report["versions"]["numpy"]
    speeds = report["times_real_time"]
    assert {"codec, torch fp32", "language model, torch fp32"} <= set(speeds) and min(speeds.values()) > 0
    if doctor.has_onnx():
        assert {"codec, onnx int8", "language model, onnx int8"} <= set(speeds)
        assert report["chosen"]["8-bit kernel"]["value"] in ("signed", "unsigned")
    assert main(["doctor", "--seconds", "0"]) == 0
    assert "training precision on cpu: " in capsys.readouterr().out


def test_without_onnx_runtime(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "has_onnx", lambda: False)
    assert main(["doctor", "--seconds", "0"]) == 0
    assert "engine of serve: torch (onnxruntime is not installed" in capsys.readouterr().out


def test_bad_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--seconds", "61"]) == 2
    assert "--seconds 61.0: expected 0 to 60" in capsys.readouterr().err
