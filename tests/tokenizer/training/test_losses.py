"""Losses: exact where they are exact, zero only for the same wave, and ordered as the measures they stand for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tokenizer.network.mel import slaney_filterbank
from tokenizer.training.losses.intelligibility import Intelligibility
from tokenizer.training.losses.loudness import Loudness
from tokenizer.training.losses.recognition import LETTERS, Recogniser, letters
from tokenizer.training.losses.wave import SpectralLoss, WaveLosses, entropy_term


def test_entropy_term_equals_enumeration() -> None:
    torch.manual_seed(0)
    latents = torch.nn.functional.normalize(torch.randn(40, 5), dim=-1)
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=5))) / 5**0.5
    assignment = torch.softmax(7.0 * latents @ corners.T, dim=-1)
    per_sample = -(assignment * assignment.log()).sum(-1).mean()
    mean = assignment.mean(0)
    got_sample, got_mean = entropy_term(latents, 7.0)
    torch.testing.assert_close(got_sample, per_sample)
    torch.testing.assert_close(got_mean, -(mean * mean.log()).sum())


def test_entropies_are_of_the_latents_that_count() -> None:
    torch.manual_seed(3)
    latents = torch.nn.functional.normalize(torch.randn(40, 6), dim=1)
    kept = torch.arange(40) % 3 > 0
    found, wanted = entropy_term(latents, 5.0, kept), entropy_term(latents[kept], 5.0)
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted))


def test_entropy_term_of_sixteen_bits_with_codes_never_assigned_has_a_slope() -> None:
    torch.manual_seed(0)
    latents = torch.nn.functional.normalize(torch.randn(50, 16), dim=-1).requires_grad_()
    sample, code = entropy_term(latents, 200.0)
    (sample - code).backward()
    assert 0 < float(code) <= np.log(50) + 0.05 + float(sample)
    assert torch.isfinite(latents.grad).all() and latents.grad.abs().max() > 0


def test_spectral_loss_is_zero_only_for_the_same_wave() -> None:
    torch.manual_seed(0)
    loss = SpectralLoss(16000)
    wave = torch.randn(2, 8000) * 0.1
    assert all(float(part) == pytest.approx(0, abs=1e-5) for part in loss(wave, wave))
    quieter, noisier = loss(wave * 0.5, wave), loss(wave + torch.randn_like(wave) * 0.1, wave)
    # Half the amplitude is ln 2 nepers in every band; the constant inside the root takes a little off quiet bins.
    assert float(quieter[0]) == pytest.approx(np.log(2), rel=0.02)
    assert float(quieter[1]) == pytest.approx(0.5, rel=0.02)
    assert float(noisier[0]) > 0.1


def voice(seed: int, seconds: float = 2.0, rate: int = 16000) -> torch.Tensor:
    """[1, S]: harmonics of a gliding pitch, in syllables, with pauses; something that the measures take for speech."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * t + seed)) / rate
    colour = np.interp(t, np.linspace(0, seconds, 16), rng.uniform(300, 3500, 16))
    wave = sum(np.sin(k * phase) * np.exp(-(((k * 130 - colour) / 500) ** 2)) for k in range(1, 30))
    envelope = np.interp(t, np.linspace(0, seconds, 24), rng.uniform(0, 1, 24).clip(0.15) - 0.15)
    return torch.from_numpy((0.2 * wave * envelope + 1e-4 * rng.standard_normal(len(t))).astype(np.float32))[None]


@pytest.mark.parametrize(("name", "measure"), [("intelligibility", "stoi"), ("loudness", "pesq")])
def test_perceptual_losses_rank_damage_as_the_measures_do(name: str, measure: str) -> None:
    loss = WaveLosses(16000, {name})
    target = voice(0)
    torch.manual_seed(1)
    waves = [target + torch.randn_like(target) * level for level in (0.001, 0.01, 0.1)]
    if measure == "stoi":
        pystoi = pytest.importorskip("pystoi")
        scores = [pystoi.stoi(target[0].numpy(), w[0].numpy(), 16000) for w in waves]
    else:
        pesq = pytest.importorskip("pesq")
        scores = [pesq.pesq(16000, target[0].numpy(), w[0].numpy(), "wb") for w in waves]
    found = [float(loss(w, target)[name]) for w in waves]
    assert float(loss(target, target)[name]) < 0.01 < found[0]
    assert np.argsort(found).tolist() == np.argsort(scores)[::-1].tolist() == [0, 1, 2]


def test_intelligibility_is_near_the_measure_itself() -> None:
    pystoi = pytest.importorskip("pystoi")
    loss = Intelligibility(16000)
    torch.manual_seed(2)
    for seed in range(3):
        target = voice(seed, seconds=3.0)
        wave = target + torch.randn_like(target) * 0.02
        pair = target[0].numpy(), wave[0].numpy(), 16000
        wanted = (pystoi.stoi(*pair) + pystoi.stoi(*pair, extended=True)) / 2
        # Not the same by design: no resampling to 10 kHz, segments every third frame, no clipping.
        assert 1 - float(loss(wave, target)) == pytest.approx(wanted, abs=0.08)


@pytest.mark.parametrize("loss", [Intelligibility(16000), Loudness(16000)])
def test_silence_gives_a_finite_slope(loss: torch.nn.Module) -> None:
    for wave, target in ((torch.zeros(2, 16000), voice(0).expand(2, -1)[:, :16000]), (voice(1), torch.zeros(1, 32000))):
        wave = wave.clone().requires_grad_()
        loss(wave, target).backward()
        assert torch.isfinite(wave.grad).all()


def test_letters() -> None:
    assert "".join(LETTERS[i - 1] for i in letters("  Dr. Café’s No. 5—éT al. ")) == "dr cafe's no et al"
    assert letters("???") == []


def test_recogniser_learns_a_text_and_skips_rows_without() -> None:
    torch.manual_seed(0)
    features, frames = torch.randn(3, 40, 8), torch.tensor([40, 35, 40])
    recogniser = Recogniser(8)
    optimizer = torch.optim.Adam(recogniser.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        loss = recogniser(features, frames, ("ab", "", "a text far too long for the frames that there are, by far"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    assert float(recogniser(features, frames, ("", "", ""))) == 0


def test_losses_do_not_depend_on_autocast() -> None:
    torch.manual_seed(3)
    latents = torch.nn.functional.normalize(torch.randn(500, 12), dim=-1)
    plain = entropy_term(latents, 30.0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(entropy_term(latents, 30.0), plain)


@pytest.mark.parametrize("samples", [320, 4000])
def test_waves_shorter_than_a_window_have_losses(samples: int) -> None:
    names = {"mel", "multi_mel", "convergence", "intelligibility", "loudness"}
    wave = torch.randn(2, samples) * 0.1
    losses = WaveLosses(16000, names)(wave.requires_grad_(), wave.detach() * 0.5)
    assert set(losses) == names and all(torch.isfinite(loss) for loss in losses.values())


def test_slaney_bands_have_unit_area_and_are_linear_below_1_khz() -> None:
    mels = slaney_filterbank(24000, 8192, 80)
    np.testing.assert_allclose(mels.sum(0) * 24000 / 8192, 1, rtol=0.02)
    peaks = mels.argmax(0) * 24000 / 8192
    low = peaks[peaks < 900]
    np.testing.assert_allclose(low.diff(), low.diff().mean(), atol=2 * 24000 / 8192)
    assert float(peaks[-1] - peaks[-2]) > 5 * float(low.diff().mean())
