"""A run's first weights: the same shard by shard as whole."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import slm.training.loop
from slm.checkpoint import load_lm, materialise
from slm.training.parallel import load_weights
from slm.training.start import Start
from slm.training.train import train
from slm.vocabulary import Vocabulary
from tests.slm.conftest import MODEL, SETTINGS
from tests.slm.training.test_train import weights_of
from tokenizer.errors import InputError

VOCABULARY = Vocabulary(codebook_size=64, token_rate=50.0, codec_name="none", codec_fingerprint="0" * 64)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"code_embedding": "table_from_bits"},
        {"code_embedding": "bits", "head_groups": 3, "tied_embeddings": False},
    ],
)
def test_weights_from_the_meta_device_are_bit_equal(options):
    config = dataclasses.replace(MODEL, **options)
    start = Start(config, VOCABULARY, SETTINGS)
    whole, _ = start.whole()
    model, initial = start.sharded()
    assert all(parameter.is_meta for parameter in model.parameters())
    torch.rand(9)  # draws between do not matter
    materialise(model, "cpu")
    load_weights(model, initial)
    torch.testing.assert_close(model.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_another_models_weights_are_the_same_on_the_meta_device(tiny_lm_dir, lm_config):
    vocabulary = load_lm(tiny_lm_dir)[1]
    other = dataclasses.replace(vocabulary, codec_fingerprint="cd" * 32)  # so that rows are drawn
    for one in (vocabulary, other):
        start = Start(lm_config, one, SETTINGS, str(tiny_lm_dir))
        whole, _ = start.whole()
        model, initial = start.sharded()
        materialise(model, "cpu")
        load_weights(model, initial)
        torch.testing.assert_close(model.state_dict(), whole.state_dict(), rtol=0, atol=0)
    with pytest.raises(InputError, match="its shape differs from the config's `model` section"):
        Start(dataclasses.replace(lm_config, layers=1), vocabulary, SETTINGS, str(tiny_lm_dir)).sharded()


@pytest.mark.parametrize("resume", [False, True])
def test_no_weights_are_drawn_that_a_file_replaces(tiny_lm_dir, lm_config, resume):
    torch.manual_seed(SETTINGS.seed)
    before = torch.get_rng_state()
    init_from = None if resume else str(tiny_lm_dir)
    Start(lm_config, load_lm(tiny_lm_dir)[1], SETTINGS, init_from, resume=resume).sharded()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_killed_before_its_first_checkpoint_begins_from_the_model_again(
    lm_config, token_dataset, tiny_lm_dir, tmp_path, monkeypatch
):
    settings = dataclasses.replace(SETTINGS, steps=4, save_every=4, validate_every=4)
    options = {"init_from": str(tiny_lm_dir), "show_progress": False}
    train(lm_config, settings, [token_dataset], tmp_path / "steady", **options)
    with monkeypatch.context() as patch:
        patch.setattr(slm.training.loop, "train_step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(lm_config, settings, [token_dataset], tmp_path / "run", **options)
    train(lm_config, settings, [token_dataset], tmp_path / "run", resume=True, **options)
    assert weights_of(tmp_path / "run", 4) == weights_of(tmp_path / "steady", 4)
