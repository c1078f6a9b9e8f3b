"""What a training step minimises: the same gradients however it is computed, and nothing counted twice."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import slm.training.steps
from pipelines.dataset.batches import Batch
from pipelines.dataset.token_dataset import TokenDataset
from slm.documents.tasks import summed_loss, targets_of
from slm.model.cross_entropy import IGNORED
from slm.model.transformer import LanguageModel, ModelConfig
from slm.training.loaders import loaders
from slm.training.train import validate
from slm.training.utilisation import flops_per_token, peak_flops
from slm.vocabulary import Vocabulary
from tokenizer.runs.optimizers import Optimizers


def test_smaller_forward_passes_give_the_same_gradient(lm_config, lm_settings, token_dataset):
    """In float64: the sum over passes is the loss of the whole step."""
    dataset = TokenDataset(token_dataset)
    vocabulary = Vocabulary(dataset.codebook_size, dataset.token_rate, "tiny", dataset.fingerprint)
    training = loaders(lm_settings, dataset, vocabulary, None).training
    norms = []
    for rows_at_once in (1, 2, 4):
        torch.manual_seed(0)
        model = LanguageModel(dataclasses.replace(lm_config, dropout=0.0), vocabulary.size).double()
        settings = dataclasses.replace(lm_settings, rows_at_once=rows_at_once)
        optimizer = Optimizers(model.named_parameters(), settings, 1e-3)
        norms.append(slm.training.steps.train_step(model, optimizer, training.batch(5), settings, 5)[:2])
    # The loss is summed in float32, hence seven digits.
    np.testing.assert_allclose(norms[1:], [norms[0]] * 2, rtol=1e-6)


def test_nothing_is_learnt_across_documents():
    tokens = np.random.default_rng(0).integers(16, 40, (2, 9))
    documents = np.array([[4, 4, 4, 5, 5, 5, 5, 6, 6], [-1, -1, -1, 0, 0, 0, 0, 0, 1]])
    targets = targets_of(Batch(tokens, documents, np.zeros_like(tokens)))
    x = IGNORED
    expected = [
        [tokens[0, 1], tokens[0, 2], x, *tokens[0, 4:7], x, tokens[0, 8]],
        [x, x, x, *tokens[1, 4:8], x],
    ]
    assert targets.tolist() == [[int(value) for value in row] for row in expected]


def test_validation_counts_each_held_out_document_once(lm_config, lm_settings, token_dataset):
    """Against the documents one by one."""
    dataset = TokenDataset(token_dataset)
    vocabulary = Vocabulary(dataset.codebook_size, dataset.token_rate, "tiny", dataset.fingerprint)
    settings = dataclasses.replace(lm_settings, validation_rows=1000)
    validation = loaders(settings, dataset, vocabulary, dataset).validation["speech"]
    torch.manual_seed(1)
    # One layer and rows in which no document is cut, so that packing changes nothing at all.
    longest = int(dataset.lengths.sum() + 2 * len(dataset))
    model = LanguageModel(dataclasses.replace(lm_config, context=longest), vocabulary.size).double().eval()
    validation.row_tokens = longest
    nats, count = 0.0, 0
    for i in range(len(dataset)):
        ids = torch.tensor([1, *(dataset.codes(i).astype(int) + 16), 2])
        nats += F.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="sum").item()
        count += len(ids) - 1
    assert validate(model, validation, settings) == pytest.approx(nats / count / math.log(2), rel=1e-5)


def test_bfloat16_loss_is_near_the_exact_one(lm_config, lm_settings, token_dataset):
    dataset = TokenDataset(token_dataset)
    vocabulary = Vocabulary(dataset.codebook_size, dataset.token_rate, "tiny", dataset.fingerprint)
    training = loaders(lm_settings, dataset, vocabulary, None).training
    torch.manual_seed(1)
    model = LanguageModel(lm_config, vocabulary.size).eval()
    exact, rough = (summed_loss(model, training.batch(0), bfloat16).item() for bfloat16 in (False, True))
    assert exact != rough
    assert rough == pytest.approx(exact, rel=1e-3)  # bfloat16 has 8 bits; errors of 256 targets mostly cancel


def test_utilisation_counts_each_product_once():
    config = ModelConfig(width=8, layers=3, heads=2, kv_heads=1, ffn_width=10, context=20)
    layer = 2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 10  # queries and output; keys and values; the feed-forward's three
    for row_tokens, span in ((12, 12), (50, 20)):
        expected = 6 * (3 * layer + 30 * 8) + 12 * 3 * 8 * span  # the tied table is a product in the head only
        assert flops_per_token(LanguageModel(config, 30), row_tokens) == expected
    peak, source = peak_flops("cpu", False)
    assert peak > 0 and source == "measured"


def gradients(model: LanguageModel, batch: Batch) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)  # dropout
    model.zero_grad()
    summed_loss(model, batch, False).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def some_batch(lm_settings, token_dataset) -> tuple[Batch, Vocabulary]:
    dataset = TokenDataset(token_dataset)
    vocabulary = Vocabulary(dataset.codebook_size, dataset.token_rate, "tiny", dataset.fingerprint)
    return loaders(lm_settings, dataset, vocabulary, None).training.batch(0), vocabulary


def test_recomputing_layers_changes_no_gradient(lm_config, lm_settings, token_dataset):
    batch, vocabulary = some_batch(lm_settings, token_dataset)
    model = LanguageModel(lm_config, vocabulary.size).train()
    expected = gradients(model, batch)
    calls = []
    model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    model.recompute = True
    torch.testing.assert_close(gradients(model, batch), expected, rtol=0, atol=0)  # dropout's masks too
    assert len(calls) == 2


@pytest.mark.soak
def test_compiled_layers_give_the_same_gradients(lm_config, lm_settings, token_dataset):
    batch, vocabulary = some_batch(lm_settings, token_dataset)
    model = LanguageModel(dataclasses.replace(lm_config, dropout=0.0), vocabulary.size).train()
    expected = gradients(model, batch)
    model.layers[1].compile()
    torch.testing.assert_close(gradients(model, batch), expected, rtol=1e-3, atol=1e-4)  # float32, other orders of sums
