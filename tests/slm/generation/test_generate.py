"""Samplers against their definitions, and generation: deterministic, independent of batch-mates, bounded."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from slm.generation import sampling as on_arrays
from slm.generation.extend import framed
from slm.generation.generate import generate
from slm.generation.sampling import RandomStream, Sampling
from slm.model.decoding import make_cache
from slm.model.transformer import LanguageModel, ModelConfig
from slm.vocabulary import BOS, EOS, FIRST_CODE, PAD, Vocabulary
from tokenizer.errors import InputError

VOCABULARY = Vocabulary(codebook_size=64, token_rate=50.0, codec_name="none", codec_fingerprint="0" * 64)
NOTHING_RECENT = torch.full((3, 4), PAD)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(width=32, layers=2, heads=4, kv_heads=2, ffn_width=48, context=20)
    model = LanguageModel(config, VOCABULARY.size).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def draw(logits: Tensor, sampling: Sampling, recent: Tensor, generators: list[RandomStream], may_end: bool) -> Tensor:
    return torch.from_numpy(on_arrays.draw(logits.numpy(), sampling, recent.numpy(), generators, may_end))


def filtered(logits: Tensor, sampling: Sampling, recent: Tensor) -> Tensor:
    return torch.from_numpy(on_arrays.filtered(logits.numpy(), sampling, recent.numpy()))


def logits_of(seed: int, rows: int = 3) -> Tensor:
    return torch.randn(rows, VOCABULARY.size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2


def codes_of(count: int, seed: int) -> Tensor:
    return torch.randint(0, 64, (count,), generator=torch.Generator().manual_seed(seed))


def said(model: LanguageModel, prompts: list[Tensor], seeds: list[int], sampling: Sampling, **limits: int) -> Tensor:
    return torch.stack(list(generate(model, VOCABULARY, prompts, sampling, seeds, **limits)), 1)


def test_draws_follow_the_softmax():
    """10,000 draws against the distribution: no code is off by more than five standard deviations."""
    logits = logits_of(1, rows=1)
    expected = logits[0].clone()
    expected[:FIRST_CODE] = -torch.inf
    expected = expected.softmax(-1)
    generator = RandomStream(0)
    count = 10_000
    drawn = draw(logits.expand(count, -1), Sampling(), torch.full((count, 1), PAD), [generator] * count, may_end=False)
    frequency = torch.bincount(drawn, minlength=VOCABULARY.size) / count
    deviation = (expected * (1 - expected) / count).sqrt()
    assert ((frequency - expected).abs() <= 5 * deviation).all()


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5, 2**63 - 1])
def test_random_streams_are_those_of_pytorch(seed):
    """Continuations keep their seeds: the numbers are those of the versions that drew with PyTorch."""
    stream, generator = RandomStream(seed), torch.Generator().manual_seed(seed)
    expected = [float(torch.rand(1, generator=generator, dtype=torch.float64)) for _ in range(700)]
    assert [stream.uniform() for _ in range(700)] == expected


@pytest.mark.parametrize("may_end", [True, False])
def test_only_codes_and_the_end_can_be_drawn(may_end):
    logits = logits_of(2)
    logits[:, :FIRST_CODE] += 100  # special tokens are by far the likeliest
    generators = [RandomStream(i) for i in range(3)]
    drawn = torch.cat([draw(logits, Sampling(), NOTHING_RECENT, generators, may_end) for _ in range(50)])
    assert (drawn == EOS).all() if may_end else (drawn >= FIRST_CODE).all()


def test_temperature_sharpens_and_zero_is_the_likeliest():
    logits = logits_of(3)
    cold = filtered(logits, Sampling(temperature=0.5), NOTHING_RECENT)
    torch.testing.assert_close(cold, (logits / 0.5).softmax(-1))
    greedy = filtered(logits, Sampling(temperature=0), NOTHING_RECENT)
    torch.testing.assert_close(filtered(logits, Sampling(temperature=1e-300), NOTHING_RECENT), greedy)
    assert torch.equal(greedy.argmax(-1), logits.argmax(-1)) and (greedy.sum(-1) == 1).all()


def test_filters_keep_what_their_definitions_say():
    logits = logits_of(4)
    probabilities = logits.softmax(-1)
    for row in range(3):
        ranked = probabilities[row].sort(descending=True)
        for k in (1, 5, 79, 80, 500):
            kept = filtered(logits, Sampling(top_k=k), NOTHING_RECENT)[row].nonzero()[:, 0]
            assert set(kept.tolist()) == set(ranked.indices[:k].tolist())
        for p in (0.01, 0.5, 0.9):
            wanted = 1 + int((ranked.values.cumsum(0) < p).sum())
            kept = filtered(logits, Sampling(top_p=p), NOTHING_RECENT)[row].nonzero()[:, 0]
            assert set(kept.tolist()) == set(ranked.indices[:wanted].tolist())
        for share in (0.01, 0.2, 1.0):
            kept = filtered(logits, Sampling(min_p=share), NOTHING_RECENT)[row].nonzero()[:, 0]
            assert set(kept.tolist()) == set((probabilities[row] >= share * ranked.values[0]).nonzero()[:, 0].tolist())


def test_the_repetition_penalty_lowers_recent_codes_only():
    logits = logits_of(5)
    recent = torch.tensor([[20, 30, 20, PAD], [PAD] * 4, [79, 78, 77, 76]])
    plain, damped = (filtered(logits, Sampling(repetition_penalty=p), recent) for p in (1.0, 1.5))
    share = damped / plain
    for row in range(3):
        names = {int(i) for i in recent[row]}
        others = [i for i in range(VOCABULARY.size) if i not in names]
        assert (share[row, others].max() - share[row, others].min()) < 1e-9
        assert all(share[row, i] < share[row, others[0]] for i in names)


def test_the_repetition_window_forgets(model):
    """A penalty that forbids: no code comes twice within the window, and with a window of 10 some come twice in 20."""
    sampling = Sampling(repetition_penalty=1e6, repetition_window=10)
    codes = said(model, [codes_of(5, 1)], [0], sampling, min_codes=200, max_codes=200)[0].tolist()
    assert all(len(set(codes[i : i + 10])) == 10 for i in range(190))
    assert any(len(set(codes[i : i + 20])) < 20 for i in range(180))


def test_generation_depends_on_prompt_and_seed_not_on_batch_mates(model):
    prompts = [codes_of(n, seed=n) for n in (0, 1, 7, 20, 33, 150)]
    seeds = [5, 6, 7, 8, 9, 10]
    sampling = Sampling(temperature=0.9, top_k=40, top_p=0.95, min_p=0.01, repetition_penalty=1.1)
    together = said(model, prompts, seeds, sampling, min_codes=60, max_codes=60)
    assert together.min() >= 0
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        assert torch.equal(said(model, [prompt], [seed], sampling, min_codes=60, max_codes=60)[0], together[row])
    again = said(model, prompts, [seed + 1 for seed in seeds], sampling, min_codes=60, max_codes=60)
    assert not (again == together).all(1).any()


def test_streams_end_on_their_own_and_stay_ended(model):
    prompts = [codes_of(9, seed=i) for i in range(8)]
    codes = said(model, prompts, list(range(8)), Sampling(), min_codes=3)
    ended = codes == -1
    assert not ended[:, :3].any()
    assert ended.any() and not ended.all(0).any()
    assert (ended[:, 1:] >= ended[:, :-1]).all()


def test_an_ended_stream_does_not_disturb_the_others(model):
    prompts = [codes_of(9, seed=i) for i in range(8)]
    codes = said(model, prompts, list(range(8)), Sampling(), min_codes=3, max_codes=80)
    for row in range(8):
        alone = said(model, prompts[row : row + 1], [row], Sampling(), min_codes=3, max_codes=80)[0]
        assert torch.equal(codes[row][codes[row] >= 0], alone)


def test_an_endless_stream_can_be_cancelled_and_keeps_its_memory(model, monkeypatch):
    caches = []
    monkeypatch.setattr("slm.model.decoding.make_cache", lambda *args: caches.append(make_cache(*args)) or caches[-1])
    stream = generate(model, VOCABULARY, [codes_of(5, 1)], Sampling(), [0], min_codes=10**9)
    codes = [int(code) for code in itertools.islice(stream, 400)]
    stream.close()
    assert len(set(codes)) > 10 and min(codes) >= 0
    assert len(caches) == 1 and caches[0].keys.shape == make_cache(model, 1).keys.shape
    # The last code drawn has not been taken in: 1 begin token + 5 of the prompt + 399.
    assert caches[0].position.tolist() == [405]


def test_prompts_are_framed_and_checked():
    tokens, lengths = framed([np.array([0, 63]), np.array([], dtype=np.int64)], VOCABULARY)
    assert tokens.tolist() == [[BOS, 16, 79], [BOS, PAD, PAD]] and lengths.tolist() == [3, 1]
    with pytest.raises(InputError, match="prompt 1 has codes from 3 to 64; expected 0 to 63"):
        framed([np.array([1]), np.array([3, 64])], VOCABULARY)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": -1.0},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": 2.0},
        {"repetition_penalty": 0.5},
    ],
)
def test_sampling_out_of_range_is_refused(change):
    (name,) = change
    with pytest.raises(InputError, match=f"{name} is {change[name]}; expected"):
        Sampling(**change)
