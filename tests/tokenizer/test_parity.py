"""The codec equals the published implementation, stage by stage."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from tokenizer import Codec

TOLERANCE = 1e-4  # relative to the largest value; float32 rounding over the depth of the model is about 1e-6


@pytest.mark.parametrize("case", ["causal_4k", "causal_65k", "causal_2k_hop320"])
def test_streaming_codecs_match_published_outputs(parity_dir: Path, case: str) -> None:
    errors = parity_script().compare(parity_dir / case)
    for stage in ("feats", "lats", "codes", "qfeats", "rec_sig", "stream_rec_sig"):
        assert errors[stage] < TOLERANCE, (stage, errors)
    assert errors["firm toks"] == 0 and errors["firm stream_toks"] == 0, errors


@pytest.mark.parametrize("case", ["offline_50hz", "offline_25hz", "offline_12_5hz"])
def test_codecs_for_whole_utterances_match_published_outputs(parity_dir: Path, case: str) -> None:
    errors = parity_script().compare(parity_dir / case)
    for stage in ("feats", "lats", "codes", "qfeats", "rec_sig"):
        assert errors[stage] < TOLERANCE, (stage, errors)
    assert errors["firm toks"] == 0, errors


def test_full_size_state_dict_has_the_published_keys_and_shapes(parity_dir: Path) -> None:
    expected = json.loads((parity_dir / "full_causal_keys.json").read_text())
    with torch.device("meta"):
        codec = Codec.from_config(json.loads((parity_dir / "full_causal_config.json").read_text()))
    assert {name: list(tensor.shape) for name, tensor in codec.state_dict().items()} == expected


def parity_script():
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "parity.py"
    spec = importlib.util.spec_from_file_location("parity", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
