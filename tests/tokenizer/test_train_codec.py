"""Training: the entropy term is exact, batches are arithmetic, and a stopped run goes on to the last bit."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from tokenizer import Codec, InputError
from tokenizer.crops import Crops, decode_corpus
from tokenizer.losses import SpectralLoss, entropy_term
from tokenizer.train_codec import TrainConfig, train

QUICK = TrainConfig(
    steps=6, batch_size=2, crop_seconds=0.48, learning_rate=1e-3, warmup_steps=2, validate_every=3, save_every=2
)


def corpus(seconds: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    """Chirps of three lengths, the last shorter than a crop: int16 [total] and their ends."""
    ends = np.array([int(16000 * seconds), int(16000 * seconds * 1.5), int(16000 * seconds * 1.5) + 2000])
    t = np.arange(ends[-1]) / 16000
    return (8000 * np.sin(400 * t + 900 * np.sin(t))).astype("<i2"), ends


def crops(seed: int = 0) -> Crops:
    return Crops(*corpus(), round(QUICK.crop_seconds * 16000), seed)


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


def test_batches_are_a_function_of_seed_and_step() -> None:
    first, again = crops(), crops()
    assert torch.equal(first.batch(7, 4), again.batch(7, 4))
    assert not torch.equal(first.batch(7, 4), first.batch(8, 4))
    assert not torch.equal(first.batch(7, 4), crops(seed=1).batch(7, 4))


def test_crops_cover_every_cut_by_its_duration() -> None:
    samples = np.repeat(np.array([1, 2, 3], dtype="<i2"), [30000, 10000, 500])
    batch = Crops(samples, np.array([30000, 40000, 40500]), 1000, seed=0).batch(0, 2000)
    values = (batch[:, 0] * 32768).int().bincount(minlength=4)[1:] / 2000
    np.testing.assert_allclose(values, np.array([30000, 10000, 500]) / 40500, atol=0.03)
    assert (batch[(batch[:, 0] * 32768).int() == 3][:, 500:] == 0).all()


def test_corpus_is_decoded_once_and_refused_for_another(tmp_path: Path) -> None:
    waves = [np.linspace(-1, 1, 1000, dtype=np.float32), np.zeros(10, dtype=np.float32)]
    samples, ends = decode_corpus(iter(waves), "one", tmp_path)
    assert ends.tolist() == [1000, 1010] and samples[0] == -32767 and samples[999] == 32767
    again, _ = decode_corpus((pytest.fail("decoded again") for _ in [0]), "one", tmp_path)
    assert np.array_equal(again, samples)
    with pytest.raises(InputError, match="another manifest"):
        decode_corpus(iter(waves), "two", tmp_path)
    with pytest.raises(InputError, match="no audio"):
        decode_corpus(iter([]), "none", tmp_path / "empty")


def records(out: Path) -> list[dict]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_stopped_run_goes_on_to_the_last_bit(tiny_codec: Codec, tmp_path: Path, monkeypatch) -> None:
    model = tiny_codec.config
    whole, _ = train(model, QUICK, crops(), crops(1), tmp_path / "whole")
    assert [row["step"] for row in records(tmp_path / "whole")] == [1, 2, 3, 4, 5, 6]

    class Stopped(Exception):
        pass

    def killed(step: int, size: int) -> torch.Tensor:
        if step == 3:  # one step after the checkpoint of step 2: step 3 is logged and must be done again
            raise Stopped
        return crops().batch(step, size)

    interrupted = crops()
    monkeypatch.setattr(interrupted, "batch", killed)
    with pytest.raises(Stopped):
        train(model, QUICK, interrupted, crops(1), tmp_path / "parts")
    assert len(records(tmp_path / "parts")) == 3
    resumed, _ = train(model, QUICK, crops(), crops(1), tmp_path / "parts")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert resumed.fingerprint == whole.fingerprint
    assert Codec.from_pretrained(tmp_path / "parts" / "codec").fingerprint == whole.fingerprint
    assert whole.fingerprint != Codec(model).fingerprint


def test_a_new_run_starts_from_given_weights(tiny_codec: Codec, tmp_path: Path) -> None:
    train(tiny_codec.config, QUICK, crops(), None, tmp_path / "fresh")
    train(tiny_codec.config, QUICK, crops(), None, tmp_path / "from", initial=tiny_codec)
    assert records(tmp_path / "from")[0] != records(tmp_path / "fresh")[0]
    untouched = dataclasses.replace(QUICK, learning_rate=1e-12, final_learning_rate=1e-12, weight_decay=0.0)
    same, _ = train(tiny_codec.config, untouched, crops(), None, tmp_path / "same", initial=tiny_codec)
    for name, tensor in tiny_codec.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], tensor, atol=1e-9, rtol=0)
    with pytest.raises(InputError, match=r"init\.fingerprint"):
        train(tiny_codec.config, untouched, crops(), None, tmp_path / "same")
    other = dataclasses.replace(
        tiny_codec.config, encoder=dataclasses.replace(tiny_codec.config.encoder, max_distance=9)
    )
    with pytest.raises(InputError, match="--init"):
        train(other, QUICK, crops(), None, tmp_path / "other", initial=tiny_codec)


def test_sigterm_saves_before_it_stops(tiny_codec: Codec, tmp_path: Path, monkeypatch) -> None:
    source = crops()

    def batch(step: int, size: int) -> torch.Tensor:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return crops().batch(step, size)

    monkeypatch.setattr(source, "batch", batch)
    _, stopped_by = train(tiny_codec.config, dataclasses.replace(QUICK, save_every=100), source, None, tmp_path)
    assert stopped_by == "SIGTERM"
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 3
    assert len(records(tmp_path)) == 3


def test_losses_fall(tiny_codec: Codec, tmp_path: Path) -> None:
    config = dataclasses.replace(QUICK, steps=30, learning_rate=3e-3, batch_size=4, save_every=100, bfloat16=False)
    train(tiny_codec.config, config, crops(), None, tmp_path)
    losses = [row["mel"] for row in records(tmp_path)]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_crops_must_be_whole_chunks(tiny_codec: Codec, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"crop_seconds 0.48 is 7000 samples.*1280"):
        train(tiny_codec.config, QUICK, Crops(*corpus(), 7000, 0), None, tmp_path)


def test_other_settings_in_the_same_folder_are_refused(tiny_codec: Codec, tmp_path: Path) -> None:
    train(tiny_codec.config, QUICK, crops(), None, tmp_path)
    with pytest.raises(InputError, match=r"other settings \(train.learning_rate\)"):
        train(tiny_codec.config, dataclasses.replace(QUICK, learning_rate=1.0), crops(), None, tmp_path)
