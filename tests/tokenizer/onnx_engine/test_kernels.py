"""The 8-bit kernel for this machine: exact, measured once, and the same tokens from either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokenizer import Codec, machine

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from tokenizer.onnx_engine import kernels
from tokenizer.onnx_engine.arrays import ArrayCodec
from tokenizer.onnx_engine.builder import quantize
from tokenizer.onnx_engine.export import export
from tokenizer.onnx_engine.kernels import Kernel, Trial


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "focalstream" / "kernels"


def wide(codec: Codec) -> Codec:
    """The tiny codec with channels enough for 8 bits."""
    raw = codec.config.to_dict()
    raw["encoder_config"] |= {"dim": 64, "ffn_dim": 128, "conv_pos": 120, "conv_pos_groups": 2}
    raw["compressor_config"] |= {"input_dim": 64, "hidden_dims": [64]}
    raw["decompressor_config"] |= {"output_dim": 64, "hidden_dims": [64]}
    raw["decoder_config"] |= {"input_dim": 64, "dim": 64, "ffn_dim": 128}
    torch.manual_seed(3)
    return Codec.from_config(raw)


def test_the_choice_is_exact_and_made_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = kernels.chosen_kernel()
    trials = kernels.remembered_trials()
    assert trials["unsigned"].exact and trials[chosen].exact
    assert trials["signed"].exact == machine.sums_bytes()  # what the table of instructions says, too
    monkeypatch.setattr(kernels, "try_kernels", lambda: pytest.fail("measured again"))
    assert kernels.chosen_kernel() == chosen
    (stored,) = cache.iterdir()
    stored.write_text("{}")
    monkeypatch.setattr(kernels, "try_kernels", lambda: {"signed": Trial(True, 1.0), "unsigned": Trial(True, 2.0)})
    assert kernels.chosen_kernel() == "signed"  # a damaged note is measured anew


@pytest.mark.parametrize(
    ("signed", "unsigned", "expected"),
    [
        (Trial(True, 1.0), Trial(True, 2.0), "signed"),
        (Trial(True, 3.0), Trial(True, 2.0), "unsigned"),
        (Trial(False, 1.0), Trial(True, 2.0), "unsigned"),  # faster and wrong
        (Trial(False, 1.0), Trial(False, 2.0), "unsigned"),
    ],
)
def test_the_fastest_exact_kernel(signed: Trial, unsigned: Trial, expected: Kernel) -> None:
    assert kernels.best_of({"signed": signed, "unsigned": unsigned}) == expected


def test_either_kernel_makes_the_same_tokens(tiny_codec: Codec, tmp_path: Path) -> None:
    codec = wide(tiny_codec)
    generator = np.random.default_rng(1)
    wave = generator.normal(0, 0.1, (2, 30 * codec.chunk_samples)).astype(np.float32)
    wave[1, 5 * codec.chunk_samples :] = 0  # rows of zeros have no magnitude to divide by
    found: dict[Kernel, Any] = {}
    for kernel in kernels.KERNELS:
        export(codec, tmp_path / kernel, "int8", kernel)
        arrays = ArrayCodec(tmp_path / kernel, "int8", threads=1)
        tokens = arrays.encode(wave)
        found[kernel] = tokens, arrays.decode(tokens)
        assert np.isfinite(found[kernel][1]).all() and len(np.unique(tokens)) > 16
    if not machine.sums_bytes():
        pytest.skip("8-bit sums of signed weights saturate on this processor")
    assert np.array_equal(found["signed"][0], found["unsigned"][0])
    # The same integers; the scales may be applied in another order.
    np.testing.assert_allclose(found["signed"][1], found["unsigned"][1], rtol=0, atol=1e-5)


def test_a_folder_of_another_kind_of_processor_is_told_of(
    tiny_codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(wide(tiny_codec), tmp_path / "signed", "int8", "signed")
    old = machine.Processor("old", ("avx2", "fma"))
    monkeypatch.setattr(machine, "processor", lambda: old)
    with pytest.warns(UserWarning, match="saturate.*Export it again here"):
        ArrayCodec(tmp_path / "signed", "int8", threads=1)


def test_quantize_keeps_each_output_within_half_a_step() -> None:
    weight = torch.randn(40, 100, generator=torch.Generator().manual_seed(2)) * torch.logspace(-6, 3, 40)[:, None]
    weight[7] = 0
    values, scales = quantize(weight)
    assert values.shape == (100, 40) and np.abs(values).max() == 127 and not values[:, 7].any()
    error = np.abs(values * scales - weight.T.numpy())
    assert (error <= 0.5001 * scales).all()
