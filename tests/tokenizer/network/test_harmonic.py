"""The source of harmonics: its pitch, that its phase runs on across steps, and that a voice takes the envelope."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tokenizer import Codec, InputError
from tokenizer.model import to_bfloat16
from tokenizer.network.fourier import overlap_add
from tokenizer.network.harmonic import REACH, HarmonicHead, harmonics
from tokenizer.network.stage_configs import DecoderConfig

CONFIG = DecoderConfig(dim=16, hop_length=320, causal=True, head="harmonic")


def steady(pitch: float, voicing: float = 30.0, hop: int = 320, n_fft: int = 640) -> HarmonicHead:
    """A head that says one pitch, turns a hop, and a flat spectrum, whatever it gets."""
    head = HarmonicHead(replace(CONFIG, hop_length=hop, n_fft=n_fft))
    with torch.no_grad():
        for layer in (head.source, head.proj):
            layer.weight.zero_()
            layer.bias.zero_()
        head.source.bias[0] = torch.logit(torch.log10(torch.tensor(pitch)))
        head.source.bias[1] = voicing
    return head


@pytest.mark.parametrize("pitch", [1.5, 4.4])
def test_harmonics_are_at_whole_multiples_up_to_the_reach(pitch: float) -> None:
    hops = 40
    time = torch.arange(160 * hops) / 160
    wave = harmonics(torch.tensor([[pitch]]), torch.tensor([[0.0]]), time)[0, 0].double().numpy()
    assert np.square(wave).mean() == pytest.approx(1, rel=0.05)
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    multiples = pitch * np.arange(1, int(REACH / pitch) + 1)
    assert np.ptp([spectrum[round(m * hops)] for m in multiples]) < 0.2 * spectrum.max()
    between = [spectrum[round((m - pitch / 2) * hops)] for m in multiples[1:]]
    assert max(between) < 1e-3 * spectrum.max()


@pytest.mark.parametrize(("hop", "n_fft"), [(320, 640), (480, 960), (320, 1280)])
def test_a_steady_pitch_has_no_seams_between_frames_or_steps(hop: int, n_fft: int) -> None:
    torch.manual_seed(0)
    head, frames = steady(2.5, hop=hop, n_fft=n_fft), torch.randn(1, 48, 16)
    with torch.no_grad():
        whole, _ = head.step(frames, head.init_state(1))
        pieces, state = [], head.init_state(1)
        for piece in frames.split(4, dim=1):
            wave, state = head.step(piece, state)
            pieces.append(wave)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-6, rtol=0)
    kept = whole[0, n_fft:-n_fft].double().numpy()
    spectrum = np.abs(np.fft.rfft(kept * np.hanning(len(kept))))
    frequency = np.fft.rfftfreq(len(kept), 0.02 / hop)  # Hz
    between = (frequency > 200) & (frequency < 3000) & (np.abs(frequency % 125 - 62.5) < 30)
    assert spectrum[between].max() < 1e-3 * spectrum[frequency < 3000].max()


def test_without_a_voice_the_head_is_the_fourier_head_and_with_one_as_loud() -> None:
    torch.manual_seed(1)
    frames = torch.randn(1, 60, 16)
    with torch.no_grad():
        loud, silent = steady(3.0), steady(3.0, voicing=-40.0)
        for head in (loud, silent):  # phases at random: all alike, they would be a click where the window is shut
            head.proj.weight[321:] = torch.randn(321, 16, generator=torch.Generator().manual_seed(2))
        plain, _ = super(HarmonicHead, silent).step(frames, super(HarmonicHead, silent).init_state(1))
        unvoiced, _ = silent.step(frames, silent.init_state(1))
        voiced, _ = loud.step(frames, loud.init_state(1))
    torch.testing.assert_close(unvoiced, plain, atol=1e-6, rtol=0)
    power = [np.square(np.abs(np.fft.rfft(wave[0, 640:].numpy()))[: 58 * REACH]).sum() for wave in (voiced, plain)]
    assert power[0] == pytest.approx(power[1], rel=0.4)


def test_pitch_gets_no_gradient_from_the_wave() -> None:
    head, frames = HarmonicHead(CONFIG), torch.randn(2, 8, 16)
    head.step(frames, head.init_state(2))[0].square().sum().backward()
    assert head.source.weight.grad is not None
    assert not head.source.weight.grad[0].any() and head.source.weight.grad[1:].any(1).all()
    voice = head.voice(frames)
    voice.pitch.sum().backward()
    assert head.source.weight.grad[0].any()
    assert ((voice.pitch > 1) & (voice.pitch < 10)).all()


@pytest.mark.parametrize(("hop", "length"), [(320, 640), (320, 1280), (320, 1024), (320, 320)])
def test_overlap_add_is_folding(hop: int, length: int) -> None:
    frames = torch.randn(3, 7, length)
    total = 6 * hop + length
    folded = torch.nn.functional.fold(frames.transpose(1, 2), (1, total), (1, length), stride=(1, hop)).flatten(1)
    assert torch.equal(overlap_add(frames, hop), folded)


def test_tables_keep_their_digits_when_weights_become_bfloat16(tiny_codec: Codec) -> None:
    config = replace(tiny_codec.config, decoder=replace(tiny_codec.config.decoder, head="harmonic"))
    torch.manual_seed(0)
    codec = Codec(config)
    before = {name: buffer.clone() for name, buffer in codec.decoder.head.named_buffers()}
    weight = codec.decoder.head.source.weight.detach().clone()
    to_bfloat16(codec)
    assert codec.encoder.feature_proj.weight.dtype == torch.bfloat16
    assert all(torch.equal(buffer, before[name]) for name, buffer in codec.decoder.head.named_buffers())
    assert torch.equal(codec.decoder.head.source.weight, weight)


def test_a_hop_too_short_for_the_harmonics_is_refused() -> None:
    with pytest.raises(InputError, match="hop_length 64 is too short"):
        DecoderConfig(dim=16, hop_length=64, causal=True, head="harmonic")
