"""A pool of live streams: what a stream hears and says does not depend on who else is in the pool."""

from __future__ import annotations

import copy
import gc
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tokenizer import Codec, InputError
from tokenizer.stream_pool import StreamPool, StreamsRefused


@pytest.fixture(params=["logmel", "conv_and_two_frames_a_token"])
def codec(request: pytest.FixtureRequest, tiny_codec: Codec) -> Codec:
    """Float64 codecs whose windows are much shorter than the streams below."""
    if request.param == "logmel":
        return copy.deepcopy(tiny_codec).double()
    raw = tiny_codec.config.to_dict()
    raw["encoder_config"] |= {"stem": "conv", "hidden_dims": [8] * 7}
    raw["compressor_config"] |= {"downscale_factors": [2]}
    raw["decompressor_config"] |= {"upscale_factors": [2]}
    raw["decoder_config"] |= {"head": "linear", "hop_length": 480}
    return request.getfixturevalue("make_codec")(raw, seed=1).double()


def noise(chunks: int, codec: Codec, seed: int) -> Tensor:
    """Float64 [chunks * chunk_samples] of noise whose level wanders, so that no two chunks are alike."""
    rng = np.random.default_rng(seed)
    samples = np.arange(chunks * codec.chunk_samples)
    level = np.interp(samples, np.arange(chunks + 1) * codec.chunk_samples, rng.random(chunks + 1))
    return torch.from_numpy(0.5 * rng.standard_normal(len(samples)) * level)


class Stream:
    """One user: audio to encode, tokens that came and wait to be decoded, audio that came."""

    def __init__(self, codec: Codec, seed: int, rng: random.Random) -> None:
        self.wave = noise(rng.randint(3, 14), codec, seed)
        self.heard = 0  # samples of `wave` given to the pool so far
        self.patience = rng.choice([1.0, rng.random()])  # the part of `wave` after which the user leaves
        self.tokens, self.audio = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
        self.waiting = self.tokens

    @property
    def over(self) -> bool:
        return self.heard >= self.patience * len(self.wave) and not len(self.waiting)


@pytest.mark.parametrize("seed", range(2))
def test_a_stream_is_the_same_alone_and_in_any_pool(codec: Codec, seed: int) -> None:
    rng = random.Random(seed)
    pool, live, done = StreamPool(codec, size=rng.randint(2, 6)), {}, []
    coming = [Stream(codec, 100 * seed + i, rng) for i in range(8)]
    while coming or live:
        if coming and len(live) < pool.size and rng.random() < 0.5:
            live[pool.join()] = coming.pop()
        speaking = [slot for slot in live if rng.random() < 0.6 and live[slot].heard < len(live[slot].wave)]
        chunks = {}
        for slot in speaking:
            end = live[slot].heard + rng.randint(1, 3) * codec.chunk_samples
            chunks[slot] = live[slot].wave[live[slot].heard : end]
            live[slot].heard = end
        for slot, tokens in pool.encode(chunks).items():
            live[slot].tokens = torch.cat([live[slot].tokens, tokens])
            live[slot].waiting = torch.cat([live[slot].waiting, tokens])
        listening = [slot for slot in live if rng.random() < 0.6 and len(live[slot].waiting)]
        pieces = {slot: live[slot].waiting[: rng.randint(1, 3) * codec.tokens_per_chunk] for slot in listening}
        for slot, audio in pool.decode(pieces).items():
            live[slot].audio = torch.cat([live[slot].audio, audio])
            live[slot].waiting = live[slot].waiting[len(pieces[slot]) :]
        assert pool.active == tuple(sorted(live))
        for slot in [slot for slot, stream in live.items() if stream.over]:
            pool.leave(slot)
            done.append(live.pop(slot))
    assert len(done) == 8 and any(stream.patience < 1 for stream in done)
    for stream in done:
        alone = codec.encode(stream.wave[: stream.heard])[0]
        assert torch.equal(stream.tokens, alone)
        # 1e-12: float64 sums in another order differ by a few units in the sixteenth digit
        torch.testing.assert_close(stream.audio, codec.decode(alone)[0], rtol=0, atol=1e-12)
    assert len(torch.cat([stream.tokens for stream in done]).unique()) > 16  # the comparison is of varied tokens


def rows(pool: StreamPool, slot: int) -> list[Tensor]:
    """A copy of everything that the pool keeps for a slot."""
    return [leaf[slot].clone() for leaf in pool._leaves]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def begun(codec: Codec, size: int) -> StreamPool:
    """A full pool whose streams have had some chunks, each its own number."""
    pool = StreamPool(codec, size)
    for slot in range(size):
        assert pool.join() == slot
        pool.decode(pool.encode({slot: noise(slot + 1, codec, seed=slot)}))
    return pool


@pytest.mark.parametrize("slots", [[0], [1, 2], [0, 3], [3, 1]])
def test_streams_that_are_not_stepped_keep_their_state_exactly(codec: Codec, slots: list[int]) -> None:
    pool = begun(codec, 4)
    before = [rows(pool, slot) for slot in range(4)]
    tokens = pool.encode({slot: noise(1, codec, seed=10 + slot) for slot in slots})
    assert list(tokens) == sorted(slots)
    pool.decode(tokens)
    for slot in range(4):
        assert same(rows(pool, slot), before[slot]) == (slot not in slots)


def test_encoding_leaves_decoding_where_it_was(codec: Codec) -> None:
    pool = begun(codec, 2)
    plain = codec.init_state(1)
    chunk = noise(1, codec, seed=5)
    wave = torch.cat([noise(1, codec, seed=0), chunk])
    tokens, _ = codec.encode_step(wave[None], plain)
    pool.encode({0: noise(3, codec, seed=6)})
    audio = pool.decode({0: tokens[0, codec.tokens_per_chunk :]})[0]
    torch.testing.assert_close(audio, codec.decode(tokens)[0, -len(audio) :], rtol=0, atol=1e-12)


def test_a_slot_is_used_again_from_the_beginning(codec: Codec) -> None:
    pool = begun(codec, 3)
    pool.leave(1)
    pool.leave(0)
    assert pool.active == (2,)
    assert pool.join() == 0 and pool.join() == 1
    wave = noise(4, codec, seed=7)
    assert torch.equal(pool.encode({1: wave})[1], codec.encode(wave)[0])


def test_memory_is_the_same_after_many_steps(tiny_codec: Codec) -> None:
    pool = begun(tiny_codec, 3)
    addresses = [leaf.data_ptr() for leaf in pool._leaves]
    wave = noise(2, tiny_codec, seed=8).float()

    def footprint() -> tuple[int, int]:
        gc.collect()
        tensors = [item for item in gc.get_objects() if issubclass(type(item), Tensor)]
        return len(tensors), sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    def steps(count: int) -> None:
        for step in range(count):
            slots = [(0,), (0, 2), (0, 1, 2)][step % 3]
            pool.decode(pool.encode({slot: wave[: 1280 * (1 + (slot + step) % 2)] for slot in slots}))
            if step % 10 == 0:
                pool.leave(1)
                pool.join()

    steps(12)
    before = footprint()
    steps(90)
    assert footprint() == before
    assert [leaf.data_ptr() for leaf in pool._leaves] == addresses


BAD_CHUNKS: list[tuple[Callable[[Codec], Tensor], str]] = [
    (lambda c: torch.full((c.chunk_samples,), float("nan")), "peak of nan"),
    (lambda c: torch.full((c.chunk_samples,), float("inf")), "peak of inf"),
    (lambda c: torch.zeros(c.chunk_samples - 1), r"expected \[n \* 1280\]"),
    (lambda c: torch.zeros(0), r"shape \(0,\)"),
    (lambda c: torch.zeros(1, c.chunk_samples), r"shape \(1, 1280\)"),
    (lambda c: torch.zeros(c.chunk_samples, dtype=torch.int16), "scale integers"),
]
BAD_TOKENS: list[tuple[Callable[[Codec], Tensor], str]] = [
    (lambda c: torch.full((c.tokens_per_chunk,), c.codebook_size), "another codec"),
    (lambda c: torch.full((c.tokens_per_chunk,), -2), "range from -2"),
    (lambda c: torch.zeros(c.tokens_per_chunk + 1, dtype=torch.int64), r"expected \[n \*"),
    (lambda c: torch.zeros(c.tokens_per_chunk), "expected integers"),
    (lambda c: torch.zeros((), dtype=torch.int64), r"shape \(\)"),
]


@pytest.mark.parametrize(
    ("way", "make", "message"),
    [("encode", *bad) for bad in BAD_CHUNKS] + [("decode", *bad) for bad in BAD_TOKENS],
)
def test_bad_input_of_one_stream_is_refused_before_any_is_stepped(
    codec: Codec, way: str, make: Callable[[Codec], Tensor], message: str
) -> None:
    pool = begun(codec, 3)
    before = [rows(pool, slot) for slot in range(3)]
    tokens = codec.encode(noise(1, codec, seed=20))[0]
    good = noise(1, codec, seed=20) if way == "encode" else tokens
    with pytest.raises(StreamsRefused, match=message) as refused:
        getattr(pool, way)({0: good, 1: make(codec), 2: good})
    assert refused.value.slots == (1,) and str(refused.value).startswith("stream 1: ")
    assert all(same(rows(pool, slot), before[slot]) for slot in range(3))
    assert set(getattr(pool, way)({0: good, 2: good})) == {0, 2}


def test_slots_that_are_not_joined_are_named(codec: Codec) -> None:
    for size in (0, 1.5, "2", None):
        with pytest.raises(InputError, match=f"size is {size!r}; expected a whole number, at least 1 stream"):
            StreamPool(codec, size)
    pool = begun(codec, 2)
    with pytest.raises(InputError, match="all 2 streams are taken"):
        pool.join()
    pool.leave(0)
    for call in (lambda: pool.leave(0), lambda: pool.leave(2), lambda: pool.leave(-1)):
        with pytest.raises(InputError, match=r"is not joined; joined are \[1\]"):
            call()
    chunk = noise(1, codec, seed=1)
    with pytest.raises(StreamsRefused, match=r"slot 0 is not joined.*slot 5 is not joined") as refused:
        pool.encode({0: chunk, 1: chunk, 5: chunk})
    assert refused.value.slots == (0, 5)
    assert pool.encode({}) == {} and pool.decode({}) == {}


class NumpyStates:
    """A codec whose states are NumPy arrays, as another engine's may be."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.chunk_samples, self.tokens_per_chunk = codec.chunk_samples, codec.tokens_per_chunk
        self.codebook_size = codec.codebook_size

    def init_state(self, batch_size: int) -> Any:
        return mapped(Tensor.numpy, self.codec.init_state(batch_size))

    def encode_step(self, chunk: Tensor, state: Any) -> tuple[Tensor, Any]:
        tokens, state = self.codec.encode_step(chunk, mapped(torch.from_numpy, state))
        return tokens, mapped(Tensor.numpy, state)

    def decode_step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        wave, state = self.codec.decode_step(tokens, mapped(torch.from_numpy, state))
        return wave, mapped(Tensor.numpy, state)


def mapped(function: Callable[[Any], Any], state: Any) -> Any:
    """A state with `function` of each leaf."""
    children = [mapped(function, child) if isinstance(child, tuple) else function(child) for child in state]
    return type(state)(*children) if hasattr(state, "_fields") else tuple(children)


def test_any_engine_whose_states_are_trees_of_arrays(codec: Codec) -> None:
    pools = [StreamPool(codec, 4), StreamPool(NumpyStates(codec), 4)]
    for _ in range(4):
        assert pools[0].join() == pools[1].join()
    for step, slots in enumerate([[0, 1, 2, 3], [0, 3], [1], [0, 2, 3], [1, 2]]):
        chunks = {slot: noise(1, codec, seed=10 * step + slot) for slot in slots}
        tokens = [pool.encode(chunks) for pool in pools]
        audio = [pool.decode(each) for pool, each in zip(pools, tokens, strict=True)]
        for slot in slots:
            assert torch.equal(tokens[0][slot], tokens[1][slot])
            assert torch.equal(audio[0][slot], audio[1][slot])


def test_numpy_is_taken_too(tiny_codec: Codec) -> None:
    torch.manual_seed(0)
    chunk = 0.1 * torch.randn(tiny_codec.chunk_samples)
    pool = StreamPool(tiny_codec, 2)
    first, second = pool.join(), pool.join()
    tokens = pool.encode({first: chunk, second: chunk.numpy()})
    assert torch.equal(tokens[first], tokens[second])
    audio = pool.decode({first: tokens[first], second: tokens[second].numpy()})
    torch.testing.assert_close(audio[first], audio[second], rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", [pytest.param("inductor", marks=pytest.mark.soak), "capture alone"])
@pytest.mark.parametrize("codec", ["tiny_codec", "comb_codec"])
def test_compiled_steps_give_the_same(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, backend: str, codec: str
) -> None:
    """And they are fit for CUDA graphs: one graph each, compiled once, whose state stays at its address."""
    tiny_codec = request.getfixturevalue(codec)
    torch._dynamo.reset()
    captured = []

    def capture(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        captured.append([node for node in graph.graph.nodes if node.op == "placeholder"])
        return graph.forward

    if backend != "inductor":
        plain = torch.compile
        monkeypatch.setattr(torch, "compile", lambda f, mode, **options: plain(f, backend=capture, **options))
    pools = [StreamPool(tiny_codec, 3, compiled=compiled) for compiled in (True, False)]
    addresses = [leaf.data_ptr() for leaf in pools[0]._leaves]
    for _ in range(3):
        assert pools[0].join() == pools[1].join()
    heard = []
    with torch.compiler.set_stance("fail_on_recompile"):
        for step, slots in enumerate([[0], [1, 2], [0, 2], [0, 1, 2], [1], [0, 1]]):
            if step == 4:
                for pool in pools:
                    pool.leave(1)
                    assert pool.join() == 1
            chunks = {slot: noise(1 + (slot + step) % 3, tiny_codec, seed=10 * step + slot).float() for slot in slots}
            tokens = [pool.encode(chunks) for pool in pools]
            audio = [pool.decode(each) for pool, each in zip(pools, tokens, strict=True)]
            assert tokens[0].keys() == audio[0].keys() == set(slots)
            for slot in slots:
                assert torch.equal(tokens[0][slot], tokens[1][slot])
                torch.testing.assert_close(audio[0][slot], audio[1][slot], rtol=0, atol=1e-6)
                heard.append(tokens[0][slot])
    assert len(torch.cat(heard).unique()) > 16
    assert [leaf.data_ptr() for leaf in pools[0]._leaves] == addresses
    if backend != "inductor":
        assert len(captured) == 2
        touched = [pools[0]._encoding, pools[0]._decoding]
        for nodes, leaves in zip(captured, touched, strict=True):
            # Weights are static by themselves, leaves by being marked; anything else that is written rules a graph out.
            marked = [node for node in nodes if "_dynamo_static_input_type" in node.meta.get("tensor_dict", {})]
            assert len(marked) >= len(leaves)


def test_only_pytorch_is_compiled(codec: Codec) -> None:
    with pytest.raises(InputError, match="compiled steps are PyTorch's, and this is a NumpyStates"):
        StreamPool(NumpyStates(codec), 2, compiled=True)
