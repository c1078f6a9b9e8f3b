"""A stream among others, wherever they are, and weights as they were when generation began."""

import pytest
import torch

from slm.model.decoding import DecodingWeights, decode_one_token, make_cache, prefill
from slm.model.transformer import LanguageModel, ModelConfig

VOCABULARY_SIZE = 300
# Wide enough for blocked matrix products.
CONFIG = ModelConfig(width=192, layers=3, heads=3, kv_heads=3, ffn_width=512, context=300)


@pytest.mark.parametrize("kv_heads", [1, 3])
def test_the_same_bits_beside_streams_that_have_come_less_and_more_far(kv_heads):
    torch.manual_seed(0)
    config = ModelConfig(**{**CONFIG.to_dict(), "kv_heads": kv_heads})
    weights_of = LanguageModel(config, VOCABULARY_SIZE).eval()
    weights = DecodingWeights(weights_of)
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(VOCABULARY_SIZE, (1, 70), generator=generator)
    steps = torch.randint(VOCABULARY_SIZE, (90, 4), generator=generator)
    found = []
    for company in (1, 60, 130, 290, 700):  # how far the others are; at 700 the cache has rolled
        cache = make_cache(weights_of, 4, longest_write=32)
        others = torch.randint(VOCABULARY_SIZE, (3, company), generator=generator)
        for row, tokens in enumerate((others[:1], prompt, others[1:2], others[2:])):
            part = type(cache)(*(field[row : row + 1] for field in cache))
            prefill(weights, tokens, torch.tensor([tokens.shape[1]]), part)
        found.append(torch.stack([decode_one_token(weights, step, cache)[1] for step in steps]))
        steps[:, [0, 2, 3]] = torch.randint(VOCABULARY_SIZE, (90, 3), generator=generator)
    assert found[0].std() > 0.1
    for logits in found[1:]:
        assert torch.equal(logits, found[0])


def test_the_weights_are_those_of_the_moment():
    """Training that goes on does not reach into a generation that has begun."""
    torch.manual_seed(0)
    model = LanguageModel(CONFIG, VOCABULARY_SIZE).eval()
    weights = DecodingWeights(model)
    tokens, lengths = torch.randint(VOCABULARY_SIZE, (2, 9)), torch.tensor([9, 9])
    before = prefill(weights, tokens, lengths, make_cache(model, 2))
    with torch.no_grad():
        for parameter in model.layers.parameters():
            parameter.mul_(1.5)
    after = prefill(DecodingWeights(model), tokens, lengths, make_cache(model, 2))
    assert torch.equal(prefill(weights, tokens, lengths, make_cache(model, 2)), before)
    assert not torch.allclose(before, after)
