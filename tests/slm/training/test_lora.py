"""Adapters: merged they compute the same, only they learn, and a run with them resumes exactly."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

import slm.training.loop
from slm.checkpoint import load_lm, model_of, save_lm
from slm.training.lora import LAYERS, add_adapters, separated
from slm.training.train import train
from slm.vocabulary import Vocabulary
from tests.slm.training.test_train import log_of, weights_of
from tokenizer.errors import InputError


@pytest.fixture
def adapted_settings(lm_settings):
    return dataclasses.replace(lm_settings, steps=8, save_every=4, validate_every=8, keep_checkpoints=9, lora=3)


@pytest.mark.parametrize("layers", LAYERS)
def test_merged_and_unmerged_adapters_give_the_same_logits(tiny_lm_dir, layers):
    """In float64, where the sums in another order differ by 1e-15 only."""
    model, vocabulary = load_lm(tiny_lm_dir)
    before = model.double()(torch.arange(20, 90).view(2, 35))
    add_adapters(model, 3, layers, 2.0, seed=1)
    torch.testing.assert_close(model(torch.arange(20, 90).view(2, 35)), before, rtol=0, atol=0)  # `up` begins at zero
    torch.manual_seed(0)
    learnt = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(learnt) == 2 * len(LAYERS[layers]) * model.config.layers
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in learnt:
                parameter += torch.randn_like(parameter)
    merged, adapters = separated(model.stored_weights(), 2.0)
    assert set(adapters) == learnt
    plain = model_of(model.config, vocabulary, {n: t.float() for n, t in merged.items()}, "cpu").double()
    for name, tensor in plain.stored_weights().items():
        tensor.copy_(merged[name])
    after = model(torch.arange(20, 90).view(2, 35))
    torch.testing.assert_close(plain(torch.arange(20, 90).view(2, 35)), after, rtol=0, atol=1e-10)
    assert (after - before).abs().max() > 0.1


def test_a_run_changes_the_adapters_alone_and_resumes_exactly(
    lm_config, adapted_settings, token_dataset, tiny_lm_dir, tmp_path, monkeypatch
):
    base = load_lm(tiny_lm_dir)[0].stored_weights()
    options = {"init_from": str(tiny_lm_dir), "show_progress": False}
    report = train(lm_config, adapted_settings, [token_dataset], tmp_path / "steady", **options)
    (adapters_count,) = {report.trained_parameters}
    with monkeypatch.context() as patch:
        patch.setattr(slm.training.loop, "reason_to_stop", lambda progress, *_: "end" if progress.step >= 4 else "")
        train(lm_config, adapted_settings, [token_dataset], tmp_path / "run", **options)
    train(lm_config, adapted_settings, [token_dataset], tmp_path / "run", resume=True, **options)
    assert log_of(tmp_path / "run") == log_of(tmp_path / "steady")
    assert weights_of(tmp_path / "run", 8) == weights_of(tmp_path / "steady", 8)
    checkpoint = tmp_path / "run" / "step-000008"
    adapters = load_file(checkpoint / "adapters.safetensors")
    assert sum(tensor.numel() for tensor in adapters.values()) == adapters_count
    found = load_file(checkpoint / "model.safetensors")
    assert set(found) == set(base)
    for name, tensor in base.items():
        update = adapters.get(name.replace(".weight", ".up"))
        assert torch.equal(found[name], tensor) == (update is None), name
        if update is not None:  # rounding of float32 only
            learnt = 2.0 * update @ adapters[name.replace(".weight", ".down")]
            torch.testing.assert_close(found[name], tensor + learnt, rtol=0, atol=1e-6)
    state = sum(file.stat().st_size for file in (checkpoint / "optimizer").iterdir())
    assert state < 2 * 4 * adapters_count + 20_000  # two moments of each adapter, names and counts


def test_what_adapters_need_is_said(lm_config, adapted_settings, token_dataset, tiny_lm_dir, tmp_path):
    with pytest.raises(InputError, match="adapters need a model to adapt; name it with --init-from"):
        train(lm_config, adapted_settings, [token_dataset], tmp_path / "run")
    wide = dataclasses.replace(adapted_settings, lora=16)
    with pytest.raises(InputError, match=r"train\.lora is 16, but k_proj of the model's layers has rank 16"):
        train(lm_config, wide, [token_dataset], tmp_path / "run", init_from=str(tiny_lm_dir))
    step = tmp_path / "base"
    model, vocabulary = load_lm(tiny_lm_dir)
    other = Vocabulary(vocabulary.codebook_size, vocabulary.token_rate, vocabulary.codec_name, "cd" * 32)
    save_lm(model, other, step)
    with pytest.raises(InputError, match="what is frozen must not be random"):
        train(lm_config, adapted_settings, [token_dataset], tmp_path / "run", init_from=str(step))
    assert not (tmp_path / "run").exists()


def test_a_changed_base_is_not_resumed_on(lm_config, adapted_settings, token_dataset, tiny_lm_dir, tmp_path):
    model, vocabulary = load_lm(tiny_lm_dir)
    save_lm(model, vocabulary, tmp_path / "base")
    settings = dataclasses.replace(adapted_settings, steps=4)
    options = {"init_from": str(tmp_path / "base"), "show_progress": False}
    train(lm_config, settings, [token_dataset], tmp_path / "run", **options)
    assert len(json.loads((tmp_path / "run/run.json").read_text())["data"]["initial_weights"]) == 64
    with torch.no_grad():
        model.norm.weight[0] += 1e-3
    save_lm(model, vocabulary, tmp_path / "base")
    with pytest.raises(InputError, match=r"began with another data\.initial_weights"):
        train(lm_config, settings, [token_dataset], tmp_path / "run", resume=True, **options)
