"""The Transformer: its cache against the plain forward pass, packing, causality, and the sliding window."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from slm.model.decoding import DecodingWeights, decode_one_token, make_cache, prefill
from slm.model.transformer import LanguageModel, ModelConfig
from tokenizer.errors import InputError

VOCABULARY_SIZE = 50
CONFIG = ModelConfig(width=24, layers=3, heads=4, kv_heads=2, ffn_width=40, context=16, dropout=0.3)


def model_of(config: ModelConfig = CONFIG, seed: int = 0) -> LanguageModel:
    """Double precision, with weights large enough for every part of the network to matter."""
    torch.manual_seed(seed)
    model = LanguageModel(config, VOCABULARY_SIZE).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def tokens_of(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    return torch.randint(0, VOCABULARY_SIZE, shape, generator=torch.Generator().manual_seed(seed))


# Equal in exact arithmetic; what is left is the order of float64 sums.
TOLERANCE = {"atol": 1e-10, "rtol": 1e-10}


@pytest.mark.parametrize("longest_write", [1, 2, 7, 16, 40])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_cached_logits_equal_the_full_forward_far_past_the_rolling_point(longest_write, kv_heads):
    model = model_of(dataclasses.replace(CONFIG, kv_heads=kv_heads))
    tokens = tokens_of((2, 100))
    expected = model(tokens)
    weights, cache = DecodingWeights(model), make_cache(model, 2, longest_write)
    prompt = 37
    logits = [prefill(weights, tokens[:, :prompt], torch.tensor([prompt, prompt]), cache)]
    logits += [decode_one_token(weights, tokens[:, i], cache) for i in range(prompt, 100)]
    torch.testing.assert_close(torch.stack(logits, 1), expected[:, prompt - 1 :], **TOLERANCE)
    assert cache.position.tolist() == [100, 100]


def test_rows_of_a_ragged_prefill_equal_solo_runs():
    model = model_of()
    lengths = torch.tensor([1, 5, 16, 17, 33, 64])
    tokens = tokens_of((6, 64))
    more = tokens_of((6, 30), seed=2)
    weights, cache = DecodingWeights(model), make_cache(model, 6, longest_write=7)
    logits = [prefill(weights, tokens, lengths, cache)]
    logits += [decode_one_token(weights, more[:, i], cache) for i in range(30)]
    for row, length in enumerate(lengths.tolist()):
        alone = model(torch.cat((tokens[row, :length], more[row]))[None])[0, length - 1 :]
        torch.testing.assert_close(torch.stack(logits, 1)[row], alone, **TOLERANCE)


def test_the_window_is_the_context():
    """With one layer, a change further back than the context cannot be seen, and one inside can."""
    model = model_of(dataclasses.replace(CONFIG, layers=1))
    tokens = tokens_of((1, 40))
    base = model(tokens)
    for back in (CONFIG.context - 1, CONFIG.context):
        changed = tokens.clone()
        changed[0, 39 - back] = (changed[0, 39 - back] + 1) % VOCABULARY_SIZE
        seen = not torch.equal(model(changed)[0, 39], base[0, 39])
        assert seen == (back < CONFIG.context)


def test_the_future_is_not_seen():
    model = model_of()
    tokens = tokens_of((1, 40))
    changed = tokens.clone()
    changed[0, 20:] = tokens_of((20,), seed=9)
    torch.testing.assert_close(model(tokens)[:, :20], model(changed)[:, :20], **TOLERANCE)
    assert not torch.allclose(model(tokens)[:, 20:], model(changed)[:, 20:])


def test_packed_documents_equal_separate_ones():
    model = model_of()
    lengths = [3, 1, 12, 24]
    tokens = tokens_of((1, sum(lengths)))
    documents = torch.repeat_interleave(torch.arange(4) * 7, torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    packed = model(tokens, documents, positions)[0]
    separate = torch.cat([model(piece[None])[0] for piece in tokens[0].split(lengths)])
    torch.testing.assert_close(packed, separate, **TOLERANCE)


def test_only_distances_between_positions_matter():
    """So a cut that goes on in a later row, at a later position, needs no special treatment."""
    model = model_of()
    tokens = tokens_of((2, 16))
    positions = torch.arange(16).expand(2, 16)
    # Positions of a day at 50 tokens a second: angles of 4e6 radians keep 9 digits in float64.
    late = model(tokens, positions=positions + 4_320_000)
    torch.testing.assert_close(model(tokens, positions=positions), late, atol=1e-6, rtol=1e-6)


def test_dropout_acts_in_training_only():
    model = model_of()
    tokens = tokens_of((1, 10))
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_embedding_layers_and_norm_are_one_graph_with_the_same_gradients(recompute):
    """`fullgraph` refuses a break. Without the generation of kernels, which takes long and differs by device."""
    model, tokens = model_of(dataclasses.replace(CONFIG, dropout=0.0)).train(), tokens_of((2, 41))
    documents = torch.arange(40).div(13, rounding_mode="floor").expand(2, 40)
    model.recompute = recompute

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(tokens[:, :-1], documents, targets=tokens[:, 1:]).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    expected = gradients()
    model.compile_whole(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradients(), expected, **TOLERANCE)


@pytest.mark.parametrize("tied", [True, False])
def test_parameter_names_are_those_of_llama(tied):
    model = LanguageModel(dataclasses.replace(CONFIG, layers=1, tied_embeddings=tied), VOCABULARY_SIZE)
    assert (model.lm_head.weight is model.embed_tokens.weight) == tied
    layer = ["input_layernorm", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    layer += [f"self_attn.{name}_proj" for name in "qkvo"]
    names = {"embed_tokens.weight", "norm.weight", "lm_head.weight", *(f"layers.0.{name}.weight" for name in layer)}
    assert set(model.state_dict()) == names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "model.width 24 is not a multiple of model.heads 5"),
        ({"kv_heads": 3}, "model.heads 4 is not a multiple of model.kv_heads 3"),
        ({"heads": 8, "kv_heads": 8}, "is odd"),
        ({"dropout": 1.0}, "model.dropout is 1.0"),
        ({"context": 0}, "model.context is 0"),
        ({"norm_eps": 0.0}, "model.norm_eps is 0.0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, **change)
