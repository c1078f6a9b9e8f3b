"""A training run's precision: what was asked for, what the run began with, what the hardware multiplies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokenizer import machine
from tokenizer.errors import InputError
from tokenizer.runs.precision import check_bfloat16, resolved_bfloat16


@pytest.mark.parametrize("able", [True, False])
def test_auto_is_said_once_and_kept_on_other_machines(
    able: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = machine.Processor("some", ("avx2", *(["avx512_bf16"] if able else [])))
    monkeypatch.setattr(machine, "processor", lambda: found)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    record = tmp_path / "run.json"
    because = ("float32: the processor does not multiply bfloat16", "bfloat16: the processor has avx512_bf16")
    assert resolved_bfloat16("auto", "cpu", record, say=True) is able
    expected = because[able]
    assert capsys.readouterr().err == f"training in {expected}\n"
    for wanted in (True, False):
        assert resolved_bfloat16(wanted, "cpu", record, say=True) is wanted
        record.write_text(json.dumps({"train": {"bfloat16": wanted}}))
        assert resolved_bfloat16("auto", "cpu", record, say=True) is wanted
    record.write_text("{}")
    assert resolved_bfloat16("auto", "cpu", record, say=False) is able
    assert not capsys.readouterr().err


def test_other_values_are_refused() -> None:
    with pytest.raises(InputError, match=r"train\.bfloat16 is 'yes'; expected true, false or auto"):
        check_bfloat16("yes", "train.bfloat16")
