"""The language model on ONNX Runtime equals PyTorch: prompts of any length, a cache that rolls, rows that wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slm.checkpoint import save_lm
from slm.model.decoding import DecodingWeights, decode_one_token, make_cache, prefill
from slm.model.transformer import LanguageModel, ModelConfig
from slm.vocabulary import Vocabulary
from tokenizer.errors import InputError

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from slm.onnx_engine.arrays import ArrayLanguageModel
from slm.onnx_engine.export import cached, export_lm
from tokenizer.onnx_engine import kernels

VOCABULARY = Vocabulary(64, 50.0, "some codec", "0" * 64)
SHAPES: dict[str, dict[str, Any]] = {
    "one key head, tied": {"kv_heads": 1, "tied_embeddings": True},
    "as many key heads": {"kv_heads": 4, "tied_embeddings": False},
    "bits": {"kv_heads": 2, "tied_embeddings": False, "code_embedding": "bits", "head_groups": 3},
}
TOLERANCE = 2e-5  # logits are about 1; the engines sum in other orders, through three layers


@pytest.fixture(autouse=True)
def cache_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=list(SHAPES))
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return made(**SHAPES[request.param])


def made(**options: Any) -> LanguageModel:
    torch.manual_seed(5)
    config = ModelConfig(width=64, layers=3, heads=4, ffn_width=96, context=40, **options)
    model = LanguageModel(config, VOCABULARY.size).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.mul_(4)  # logits that differ
        else:
            parameter.copy_(torch.rand(parameter.shape) + 0.5)
    return model


def exported(model: LanguageModel, folder: Path, precision: str) -> ArrayLanguageModel:
    save_lm(model, VOCABULARY, folder / "source")
    export_lm(folder / "source", folder / precision, precision)
    return ArrayLanguageModel(folder / precision, precision, threads=1)


def test_equals_torch_through_ragged_prompts_and_a_cache_that_rolls(model: LanguageModel, tmp_path: Path) -> None:
    arrays, weights = exported(model, tmp_path, "fp32"), DecodingWeights(model)
    generator = torch.Generator().manual_seed(6)
    theirs, ours = make_cache(model, 3, longest_write=16), arrays.make_cache(3, longest_write=16)
    prompts, lengths = torch.randint(80, (3, 70), generator=generator), torch.tensor([70, 1, 33])
    expected = prefill(weights, prompts, lengths, theirs)
    found = arrays.prefill(prompts.numpy(), lengths.numpy(), ours)
    assert expected.std() > 0.3
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=TOLERANCE)
    for step in range(90):  # longer than the context and the cache
        token = torch.randint(80, (3,), generator=generator)
        live = torch.rand(3, generator=generator) > 0.3
        expected = decode_one_token(weights, token, theirs, live)
        found = arrays.decode_one_token(token.numpy(), ours, live.numpy())
        np.testing.assert_allclose(found[live], expected[live].numpy(), rtol=0, atol=TOLERANCE)
        if step % 20 == 7:  # a newcomer in one row, as in a server's slots
            part = type(theirs)(*(field[1:2] for field in theirs))
            part.position[0], ours.position[1] = 0, 0
            piece = torch.randint(80, (1, 5), generator=generator)
            expected = prefill(weights, piece, torch.tensor([5]), part)
            found = arrays.prefill(piece.numpy(), np.array([5]), ours.row(1))
            np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=TOLERANCE)
    assert ours.position.tolist() == theirs.position.tolist()


def test_rows_that_never_began_stay_finite_and_alone(tmp_path: Path) -> None:
    arrays = exported(made(kv_heads=1), tmp_path, "fp32")
    both, alone = arrays.make_cache(2), arrays.make_cache(2)
    for token in np.random.default_rng(7).integers(0, 80, 60):
        idle = np.array([True, False])
        left = arrays.decode_one_token(np.array([token, 79]), both, idle).copy()
        right = arrays.decode_one_token(np.array([token, 3]), alone, idle)
        assert np.array_equal(left[0], right[0]) and np.isfinite(left).all()
    assert both.position.tolist() == [60, 0]


def test_8_bits_are_close(model: LanguageModel, tmp_path: Path) -> None:
    arrays, weights = exported(model, tmp_path, "int8"), DecodingWeights(model)
    prompts, lengths = torch.randint(80, (4, 30), generator=torch.Generator().manual_seed(8)), torch.full((4,), 30)
    expected = prefill(weights, prompts, lengths, make_cache(model, 4)).log_softmax(-1).numpy()
    found = arrays.prefill(prompts.numpy(), lengths.numpy(), arrays.make_cache(4))
    found = torch.from_numpy(found).log_softmax(-1).numpy()
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected - expected.mean()).max()


def test_a_cache_of_exports(tmp_path: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "try_kernels", lambda: pytest.fail("fp32 has no kernel to choose"))
    save_lm(made(kv_heads=1), VOCABULARY, tmp_path / "lm")
    folder = cached(tmp_path / "lm", "fp32")
    assert list((cache_home / "focalstream" / "lm").iterdir()) == [folder]
    written = (folder / "step.weights").stat().st_mtime_ns
    assert cached(tmp_path / "lm", "fp32") == folder and (folder / "step.weights").stat().st_mtime_ns == written
    (folder / "step.weights").write_bytes(b"damaged")
    assert cached(tmp_path / "lm", "fp32") == folder
    ArrayLanguageModel(folder, "fp32", 1)  # whole again
    save_lm(made(kv_heads=2), VOCABULARY, tmp_path / "lm")
    assert cached(tmp_path / "lm", "fp32") != folder  # new weights


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        cached(tmp_path, "fp32")
    save_lm(made(kv_heads=1), VOCABULARY, tmp_path / "lm")
    with pytest.raises(InputError, match="precision 'fp16'"):
        cached(tmp_path / "lm", "fp16")
    (tmp_path / "lm" / "model.safetensors").write_bytes(b"none")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        cached(tmp_path / "lm", "fp32")
    save_lm(made(kv_heads=1), VOCABULARY, tmp_path / "lm")
    export_lm(tmp_path / "lm", tmp_path / "out", "fp32")
    with pytest.raises(InputError, match="was exported as fp32, not int8"):
        ArrayLanguageModel(tmp_path / "out", "int8")
