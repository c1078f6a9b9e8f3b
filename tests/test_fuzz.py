"""A small part of benchmarks/fuzz.py: every reader takes or refuses broken input, and raises nothing else."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
CASES = 25  # of each reader; the script does 10,000 in all
READERS = ["audio", "config", "dataset", "manifest", "messages", "npy", "packed", "shar", "weights"]


@pytest.fixture(scope="module")
def fuzz() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("fuzz")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def seeds(fuzz: Any, tiny_codec_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return fuzz.make_seeds(tmp_path_factory.mktemp("seeds"), tiny_codec_dir)


def test_all_readers_take_part(fuzz: Any) -> None:
    assert sorted(fuzz.READERS) == sorted(fuzz.SHARES) == READERS and abs(sum(fuzz.SHARES.values()) - 1) < 1e-9


@pytest.mark.parametrize("reader", READERS)
def test_broken_input_is_read_or_refused(fuzz: Any, seeds: dict[str, Any], reader: str) -> None:
    outcomes = [fuzz.outcome_of(reader, case, 2, seeds) for case in range(CASES)]
    assert [found for kind, found in outcomes if kind == "finding"] == []
    assert {"refused"} <= {kind for kind, _ in outcomes}


def test_a_reader_that_fails_is_a_finding(fuzz: Any, seeds: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fuzz.READERS, "npy", lambda rng, folder, seeds: {}["missing"])
    kind, found = fuzz.outcome_of("npy", 0, 2, seeds)
    assert kind == "finding" and "KeyError" in found
