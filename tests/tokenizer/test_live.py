"""One stream in blocks of any size gives what the whole gives; seconds round up to whole chunks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tokenizer import Codec, InputError
from tokenizer.chunks import in_pieces, regrouped, whole_chunks
from tokenizer.live import LiveStream


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 0.1, samples))


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("samples", [1, 1280, 4321, 20 * 1280 + 700])
def test_blocks_of_any_size_give_the_tokens_and_the_audio_of_the_whole(
    tiny_codec: Codec, samples: int, chunks: int
) -> None:
    codec, wave = copy.deepcopy(tiny_codec).double(), noise(samples, samples)
    rng = np.random.default_rng(samples)
    cuts = np.sort(rng.integers(0, samples + 1, 7))
    blocks = np.split(wave.numpy(), cuts)  # some of them empty, some longer than a chunk
    stream, tokens, audio = LiveStream(codec), [], []
    for block in regrouped((torch.from_numpy(block) for block in blocks), chunks * codec.chunk_samples):
        tokens.append(stream.encode(block))
        audio.append(stream.decode(tokens[-1]))
    expected = codec.encode(wave)[0]
    assert torch.equal(torch.cat(tokens), expected)
    # In float64 the sums of another split differ by 1e-16 a term.
    torch.testing.assert_close(torch.cat(audio), codec.decode(expected)[0], atol=1e-12, rtol=0)


def test_a_stream_ends_with_a_block_that_is_not_whole(tiny_codec: Codec) -> None:
    stream = LiveStream(tiny_codec)
    tokens = stream.encode(noise(1000))
    stream.decode(tokens[:1])
    with pytest.raises(InputError, match=r"LiveStream\.encode: the block before .* of 1280 samples"):
        stream.encode(noise(1280))
    with pytest.raises(InputError, match=r"LiveStream\.decode: the block before"):
        stream.decode(tokens)


def test_a_stream_goes_on_from_a_state(tiny_codec: Codec) -> None:
    wave = noise(6 * 1280)
    first = LiveStream(tiny_codec)
    tokens = [first.encode(wave[: 2 * 1280])]
    tokens.append(LiveStream(tiny_codec, first.state).encode(wave[2 * 1280 :]))
    assert torch.equal(torch.cat(tokens), tiny_codec.encode(wave)[0])


@pytest.mark.parametrize("as_tensor", [False, True])
def test_blocks_are_regrouped_in_order(as_tensor: bool) -> None:
    values = np.random.default_rng(3).integers(0, 1000, 1003)
    blocks = np.split(values, [0, 10, 10, 500, 511, 900])
    given = [torch.from_numpy(block) for block in blocks] if as_tensor else blocks
    out = [np.asarray(block) for block in regrouped(given, 100)]
    assert [len(block) for block in out] == [100] * 10 + [3]
    assert np.array_equal(np.concatenate(out), values)
    assert list(regrouped([values[:0]], 5)) == []


def test_pieces_of_arrays_and_tensors_pass_the_same_state_on() -> None:
    x = np.random.default_rng(5).integers(-9, 9, (2, 50))

    def step(part, state):
        sums = part.cumsum(1) + state
        return sums, sums[:, -1:]

    padded = whole_chunks(x, 8, -1)
    assert padded.shape == (2, 56) and (padded[:, 50:] == -1).all()
    assert np.array_equal(whole_chunks(torch.from_numpy(x), 8, -1).numpy(), padded)
    assert np.array_equal(in_pieces(step, padded, np.zeros((2, 1), int), 16), padded.cumsum(1))
    tensors = in_pieces(step, torch.from_numpy(padded), torch.zeros(2, 1, dtype=torch.int64), 24)
    assert np.array_equal(tensors.numpy(), padded.cumsum(1))


def test_seconds_round_up_to_whole_chunks(tiny_codec: Codec) -> None:
    size = tiny_codec.tokens_per_chunk
    assert tiny_codec.latency_ms == 80
    for seconds, chunks in ((0.0, 0), (0.001, 1), (0.08, 1), (0.8, 10), (0.81, 11), (2.4, 30), (6.0, 75)):
        assert tiny_codec.tokens_for(seconds) == chunks * size, seconds
