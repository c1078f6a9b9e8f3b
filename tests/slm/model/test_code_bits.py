"""Embeddings made of bits and the head of bit groups: probabilities, likelihood, cache, checkpoints, generation."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from slm.checkpoint import load_lm, save_lm
from slm.generation.generate import Sampling, generate
from slm.model.code_bits import BitEmbedding, BitGroupHead, signs
from slm.model.cross_entropy import IGNORED
from slm.model.decoding import DecodingWeights, decode_one_token, make_cache, prefill
from slm.model.transformer import LanguageModel, ModelConfig
from slm.training.train import train
from slm.vocabulary import FIRST_CODE, Vocabulary
from tokenizer.errors import InputError
from tokenizer.network.quantizer import BinarySphericalQuantizer
from tokenizer.network.stage_configs import QuantizerConfig

VOCABULARY = Vocabulary(codebook_size=64, token_rate=50.0, codec_name="none", codec_fingerprint="0" * 64)
CONFIG = ModelConfig(width=32, layers=2, heads=4, kv_heads=2, ffn_width=48, context=20, tied_embeddings=False)
OPTIONS = [
    {"code_embedding": "bits"},
    {"head_groups": 2},
    {"code_embedding": "bits", "head_groups": 3},
    {"code_embedding": "table_from_bits", "tied_embeddings": True},
]


def model_of(options: dict) -> LanguageModel:
    """Double precision, with weights large enough for every part to matter."""
    torch.manual_seed(0)
    model = LanguageModel(dataclasses.replace(CONFIG, **options), VOCABULARY.size).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def test_signs_are_the_codes_of_the_quantizer():
    tokens = torch.randperm(64)
    expected = BinarySphericalQuantizer(QuantizerConfig(codebook_size=64)).codes(tokens)
    torch.testing.assert_close(signs(tokens, 6), expected)


def test_codes_share_the_vectors_of_their_bits_and_special_ids_have_their_own():
    torch.manual_seed(0)
    embedding = BitEmbedding(VOCABULARY.size, 5)
    torch.nn.init.normal_(embedding.weight)
    codes = torch.tensor([0b101100, 0b101000])
    with_bit, without = embedding(codes + FIRST_CODE)
    torch.testing.assert_close(with_bit - without, 2 * embedding.weight[FIRST_CODE + 3] / 6**0.5)
    assert torch.equal(embedding(torch.arange(FIRST_CODE)), embedding.weight[:FIRST_CODE])


@pytest.mark.parametrize("groups", [2, 3, 4, 6])
def test_the_chain_of_groups_is_a_distribution_and_its_loss_is_exact(groups):
    torch.manual_seed(groups)
    head = BitGroupHead(12, VOCABULARY.size, groups).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    hidden = torch.randn(3, 50, 12, dtype=torch.float64)
    scores = head(hidden)
    assert scores.shape == (3, 50, VOCABULARY.size)
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(3, 50, dtype=torch.float64))
    targets = torch.randint(0, VOCABULARY.size, (150,))
    targets[::7] = IGNORED
    counted = targets != IGNORED
    expected = -scores.flatten(0, 1)[counted].gather(1, targets[counted, None]).sum()
    torch.testing.assert_close(head.summed_loss(hidden.flatten(0, 1), targets), expected)


@pytest.mark.parametrize("options", OPTIONS)
def test_cache_loss_files_and_generation_work_with_each_option(options, tmp_path):
    model = model_of(options)
    tokens = torch.randint(0, VOCABULARY.size, (2, 50), generator=torch.Generator().manual_seed(1))
    logits = model(tokens)
    weights, cache = DecodingWeights(model), make_cache(model, 2, 7)
    cached = [prefill(weights, tokens[:, :30], torch.tensor([30, 30]), cache)]
    cached += [decode_one_token(weights, tokens[:, i], cache) for i in range(30, 50)]
    torch.testing.assert_close(torch.stack(cached, 1), logits[:, 29:], atol=1e-10, rtol=1e-10)  # float64 sums
    loss = model(tokens[:, :-1], targets=tokens[:, 1:])
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected)

    save_lm(model.float(), VOCABULARY, tmp_path / "lm")
    loaded, _ = load_lm(tmp_path / "lm")
    assert torch.equal(loaded(tokens), model(tokens))
    prompts = [torch.tensor([5, 63, 0]), torch.tensor([], dtype=torch.int64)]
    said = torch.stack(list(generate(loaded, VOCABULARY, prompts, Sampling(top_p=0.9), [1, 2], 30, 30)))
    assert said.shape == (30, 2) and int(said.min()) >= 0 and int(said.max()) < 64 and len(said.unique()) > 5


@pytest.mark.parametrize("options", OPTIONS[2:])
def test_training_learns_with_each_option(options, lm_config, lm_settings, token_dataset, tmp_path):
    config = dataclasses.replace(lm_config, **{"tied_embeddings": False, **options})
    report = train(config, lm_settings, [token_dataset], tmp_path / "run", show_progress=False)
    assert report.best_bits_per_token < 7.5  # of 8, where it starts
    load_lm(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code_embedding": "words"}, "model.code_embedding is 'words'; expected one of table"),
        ({"code_embedding": "bits", "tied_embeddings": True}, "model.tied_embeddings is true, but"),
        ({"head_groups": 2, "tied_embeddings": True}, "model.tied_embeddings is true, but"),
        ({"head_groups": 0}, "model.head_groups is 0"),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_options_that_do_not_fit_the_codes_are_refused():
    with pytest.raises(InputError, match="head_groups is 7, but a code has 6 bits"):
        model_of({"head_groups": 7})
    with pytest.raises(InputError, match="the codec has 65 codes, which is not a power of two"):
        LanguageModel(dataclasses.replace(CONFIG, code_embedding="bits"), FIRST_CODE + 65)
