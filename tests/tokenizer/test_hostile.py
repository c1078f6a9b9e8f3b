"""Files from strangers: sizes that no memory holds, nesting without end, references that multiply; each one line."""

from __future__ import annotations

import copy
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import TINY
from tokenizer import Codec
from tokenizer.config import CodecConfig
from tokenizer.errors import InputError, TerminalText
from tokenizer.parsed import dataclass_from_dict, read_yaml_file


@pytest.mark.parametrize(
    ("stage", "key", "value"),
    [
        ("encoder", "num_layers", 10**9),
        ("encoder", "ffn_dim", 10**12),
        ("encoder", "num_heads", 0),
        ("encoder", "window_size", 4 * 10**11),
        ("encoder", "strides", [10**9] * 7),
        ("encoder", "hidden_dims", [8] * 10_000),
        ("compressor", "focal_level", 10**9),
        ("quantizer", "codebook_size", 2**60),
        ("decoder", "hop_length", -5),
        ("decoder", "n_fft", 10**12),
        ("decoder", "num_layers", 10**400),
    ],
)
def test_sizes_of_a_codec_are_bounded(stage: str, key: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_, **__: pytest.fail("it was built"))
    raw = copy.deepcopy(TINY)
    raw[f"{stage}_config"][key] = value
    with pytest.raises(InputError, match=rf"{stage}_config: {key} (is|has) .*; expected") as refused:
        Codec.from_config(raw)
    assert len(str(refused.value)) < 200


def test_a_codec_larger_than_its_weights_is_not_built(tiny_codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = copy.deepcopy(TINY)
    raw["encoder_config"].update(num_layers=1000, dim=1 << 14, ffn_dim=1 << 16)
    raw["compressor_config"]["input_dim"] = 1 << 14
    weights = tiny_codec.state_dict()
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_, **__: pytest.fail("it was built"))
    with pytest.raises(InputError, match=r"makes at least [\d,]+ weights, but the file holds [\d,]+"):
        Codec.with_weights(CodecConfig.from_dict(raw), weights, "large")


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_lower_bound_of_weights_is_one(name: str, tiny_codec: Codec) -> None:
    codec = tiny_codec if name == "tiny" else Codec.from_pretrained("small")
    assert isinstance(codec, Codec)
    stored = sum(tensor.numel() for tensor in codec.state_dict().values())
    assert stored / 20 < codec.config.parameters_at_least <= stored


def test_deep_yaml_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text("[" * 20_000)
    with pytest.raises(InputError, match=r"deep\.yaml: not a YAML file"):
        read_yaml_file(path)


def test_a_value_that_multiplies_by_reference_is_shown_briefly(tmp_path: Path) -> None:
    from tokenizer.network.stage_configs import QuantizerConfig

    path = tmp_path / "laughs.yaml"
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    path.write_text("a0: &a0 [x]\n" + "\n".join(levels) + "\ncodebook_size: *a29\n")
    raw = {"codebook_size": read_yaml_file(path)["codebook_size"]}
    began = time.process_time()
    with pytest.raises(InputError, match="codebook_size is ") as refused:
        dataclass_from_dict(QuantizerConfig, raw, "quantizer")
    assert len(str(refused.value)) < 1000 and time.process_time() - began < 10  # all of it would take years


def test_an_array_that_claims_more_than_there_is(tmp_path: Path) -> None:
    from tokenizer.commands.decode import read_tokens

    path = tmp_path / "huge.npy"
    np.save(path, np.zeros(4, np.int64))
    data = path.read_bytes()
    header = data[:10] + data[10:128].replace(b"(4,)", b"(1000000000000,)")[:117] + b"\n"
    path.write_bytes(header + data[128:])
    with pytest.raises(InputError, match="not a NumPy file of numbers"):
        read_tokens(str(path), 256)


def test_control_characters_do_not_reach_a_terminal() -> None:
    raw = io.BytesIO()
    text = TerminalText(raw, "utf-8", "backslashreplace", line_buffering=True)
    print("cut \x1b[2J\x07 \u202e done", file=text)
    assert raw.getvalue() == b"cut \\x1b[2J\\x07 \\u202e done\n"


def test_a_deep_config_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(InputError, match="not a JSON file"):
        CodecConfig.from_file(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps({"encoder_config": 5}))
    with pytest.raises(InputError, match="expected a mapping"):
        CodecConfig.from_file(tmp_path / "config.json")
