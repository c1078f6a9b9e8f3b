"""The same codec on a CUDA device: tokens of the CPU wherever rounding cannot decide a sign."""

from __future__ import annotations

import pytest
import torch

from tokenizer import Codec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def test_tokens_and_audio_are_those_of_the_cpu(tiny_codec_dir) -> None:
    torch.manual_seed(0)
    host, device = Codec.from_pretrained(tiny_codec_dir), Codec.from_pretrained(tiny_codec_dir, device="cuda")
    wave = 0.1 * torch.randn(2, 20000)
    firm = host.latents(host.features(wave)).abs().amin(-1) > 1e-3  # a GPU may multiply in TF32
    tokens = host.encode(wave)
    assert firm.float().mean() > 0.5
    assert torch.equal(device.encode(wave).cpu()[firm], tokens[firm])
    torch.testing.assert_close(device.decode(tokens).cpu(), host.decode(tokens), atol=1e-2, rtol=0)


def test_streaming_on_the_device_gives_the_tokens_of_the_whole(tiny_codec_dir) -> None:
    torch.manual_seed(0)
    codec = Codec.from_pretrained(tiny_codec_dir, device="cuda")
    wave = 0.1 * torch.randn(2, 4 * codec.chunk_samples)
    state, pieces = codec.init_state(2), []
    for chunk in wave.split(codec.chunk_samples, dim=1):
        tokens, state = codec.encode_step(chunk, state)
        pieces.append(tokens)
    firm = codec.latents(codec.features(wave)).abs().amin(-1) > 1e-3
    assert torch.equal(torch.cat(pieces, 1)[firm], codec.encode(wave)[firm])
