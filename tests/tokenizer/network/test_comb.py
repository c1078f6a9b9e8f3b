"""The comb filter: what it does to a voice and leaves alone, by its definition, and that steps have no seams."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tokenizer import Codec
from tokenizer.model import to_bfloat16
from tokenizer.network.comb import HIGHEST, LOWEST, TAPS, CombHead
from tokenizer.network.fourier import FourierHead
from tokenizer.network.stage_configs import DecoderConfig

CONFIG = DecoderConfig(dim=16, hop_length=320, causal=True, head="comb")


def heads(pitch: float, voicing: float = 30.0, hop: int = 320, n_fft: int = 640) -> tuple[CombHead, FourierHead]:
    """One that says the same pitch, turns a hop, whatever it gets, and one with the same spectra and no filter."""
    torch.manual_seed(0)
    config = replace(CONFIG, hop_length=hop, n_fft=n_fft)
    comb, plain = CombHead(config), FourierHead(replace(config, head="istft"))
    with torch.no_grad():
        comb.proj.weight.normal_()
        comb.source.weight.zero_()
        comb.source.bias[0] = torch.logit(torch.log(torch.tensor(pitch / LOWEST)) / np.log(HIGHEST / LOWEST))
        comb.source.bias[1] = voicing
    plain.load_state_dict(comb.state_dict(), strict=False)
    return comb, plain


def rendered(head: FourierHead, frames: Tensor) -> Tensor:
    with torch.no_grad():
        return head.step(frames, head.init_state(len(frames)))[0]


@pytest.mark.parametrize("pitch", [2.5, 5.0])
def test_a_voice_keeps_its_harmonics_and_loses_half_of_what_is_between_below_the_bands_end(pitch: float) -> None:
    comb, plain = heads(pitch)
    frames = torch.randn(1, 400, 16)
    wave, unfiltered = (rendered(head, frames)[0, 3200:].double().numpy() for head in (comb, plain))
    spectra = [
        np.square(np.abs(np.fft.rfft(x.reshape(-1, 3200) * np.hanning(3200)))).mean(0) for x in (wave, unfiltered)
    ]
    gain = np.sqrt(spectra[0] / spectra[1])  # by 5 Hz
    multiples = np.arange(1, int(26 / pitch)) * pitch * 10  # bins, up to 1.3 kHz
    assert gain[multiples.astype(int)] == pytest.approx(1, abs=0.05)
    assert gain[(multiples + pitch * 5).astype(int)] == pytest.approx(1 - 2 * TAPS[0], abs=0.05)
    assert gain[360:] == pytest.approx(1, abs=0.02)  # from 1.8 kHz on


@pytest.mark.parametrize(("hop", "n_fft"), [(320, 640), (480, 960), (320, 1280), (64, 128)])
def test_steps_have_no_seams(hop: int, n_fft: int) -> None:
    head, frames = heads(2.0, hop=hop, n_fft=n_fft)[0].double(), torch.randn(2, 24, 16, dtype=torch.float64)
    with torch.no_grad():
        head.source.weight.normal_(std=0.5)
        head.source.bias.zero_()
        pieces, state = [], head.init_state(2)
        for piece in frames.split([1, 4, 3, 16], dim=1):
            wave, state = head.step(piece, state)
            pieces.append(wave)
    torch.testing.assert_close(torch.cat(pieces, 1), rendered(head, frames), atol=1e-9, rtol=0)


@pytest.mark.parametrize("pitch", [LOWEST * 1.0001, 2.37, HIGHEST * 0.9999])
def test_the_filter_is_its_definition(pitch: float) -> None:
    comb, _ = heads(pitch)
    low = torch.randn(1, comb.reach + 2000)
    added = comb._missing(low, torch.full((1, 2000), pitch))[0]
    n, x = np.arange(comb.reach, comb.reach + 2000), low[0].double().numpy()
    before = [np.interp(n - k * 320 / pitch, np.arange(len(x)), x) for k in (1, 2)]
    expected = sum(tap * (then - x[n]) for tap, then in zip(TAPS, before, strict=True))
    torch.testing.assert_close(added.double(), torch.from_numpy(expected), atol=2e-4, rtol=0)


def test_without_a_voice_nothing_is_filtered() -> None:
    comb, plain = heads(3.0, voicing=-40.0)
    frames = torch.randn(1, 60, 16)
    torch.testing.assert_close(rendered(comb, frames), rendered(plain, frames), atol=1e-6, rtol=0)


def test_a_training_hears_the_wave_before_the_filter_and_teaches_pitch_and_voicing_by_themselves() -> None:
    head, plain = heads(3.0)
    frames = torch.randn(2, 8, 16)
    wave, voice = head.unfiltered(frames, head.init_state(2))
    torch.testing.assert_close(wave, rendered(plain, frames), atol=0, rtol=0)
    wave.square().sum().backward()
    assert head.source.weight.grad is None and head.proj.weight.grad.any()
    for said in (voice, CombHead(CONFIG).voice(frames)):
        assert ((said.pitch > LOWEST) & (said.pitch < HIGHEST)).all()
        assert said.pitch.requires_grad and said.voicing.requires_grad


def test_tables_keep_their_digits_when_weights_become_bfloat16(tiny_codec: Codec) -> None:
    config = replace(tiny_codec.config, decoder=replace(tiny_codec.config.decoder, head="comb"))
    torch.manual_seed(0)
    codec = Codec(config)
    before = {name: buffer.clone() for name, buffer in codec.decoder.head.named_buffers()}
    weight = codec.decoder.head.source.weight.detach().clone()
    to_bfloat16(codec)
    assert codec.encoder.feature_proj.weight.dtype == torch.bfloat16
    assert all(torch.equal(buffer, before[name]) for name, buffer in codec.decoder.head.named_buffers())
    assert torch.equal(codec.decoder.head.source.weight, weight)
