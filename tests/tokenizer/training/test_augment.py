"""Augmentation: drawn by seed and step, heard on both sides alike, and each change does what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.tokenizer.training.conftest import make_corpus
from tests.tokenizer.training.test_config import PLAIN
from tokenizer import InputError
from tokenizer.training import augment
from tokenizer.training.augment import Augmentation
from tokenizer.training.batches import Crops, Rates
from tokenizer.training.recipe import read_config

RATES = Rates(16000, 16000, 1280)
ALL = Augmentation(speed=0.1, level=6.0, bandwidth=0.5, room=0.5, noise=0.5)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def band(wave: np.ndarray, low: float, high: float) -> float:
    """Power between two frequencies, Hz."""
    power, frequency = np.abs(np.fft.rfft(wave)) ** 2, np.fft.rfftfreq(len(wave), 1 / 16000)
    return float(power[(frequency >= low) & (frequency < high)].mean())


def test_batches_are_a_function_of_seed_and_step() -> None:
    first, again = (Crops(make_corpus(), RATES, 7680, 4, 0, ALL) for _ in range(2))
    plain = Crops(make_corpus(), RATES, 7680, 4, 0)
    assert torch.equal(first[7].wave, again[7].wave) and torch.equal(first[7].wave, first[7].target)
    assert not torch.equal(first[7].wave, plain[7].wave) and first[7].wave.shape == plain[7].wave.shape
    assert not torch.equal(first[7].wave[0], first[8].wave[0])


def test_without_augmentation_batches_are_what_they_were() -> None:
    plain, off = Crops(make_corpus(), RATES, 7680, 4, 0), Crops(make_corpus(), RATES, 7680, 4, 0, Augmentation())
    assert torch.equal(plain[3].wave, off[3].wave)


def test_speed_changes_the_pitch_and_fills_the_row() -> None:
    t = np.arange(32000) / 16000
    tone = np.sin(2 * np.pi * 400 * t).astype(np.float32)
    for factor in (0.9, 1.1):
        out = augment.at_speed(tone, factor, 16000)
        assert len(out) == 16000
        assert np.argmax(np.abs(np.fft.rfft(out))) == pytest.approx(400 * factor, abs=1)
    factors = [ALL.speed_factor(np.random.default_rng(seed)) for seed in range(200)]
    assert 1 / 1.1 <= min(factors) < 0.93 and 1.07 < max(factors) <= 1.1


def test_bandwidth_room_noise_and_level() -> None:
    wave = noise(16000)
    narrow = augment.narrowed(wave, 16000, 4000.0)
    assert band(narrow, 5000, 8000) < 1e-3 * band(wave, 5000, 8000)
    assert band(narrow, 500, 3500) == pytest.approx(band(wave, 500, 3500), rel=0.05)

    click = np.zeros(16000, dtype=np.float32)
    click[100] = 0.5
    wet = augment.in_room(click, 16000, np.random.default_rng(1))
    assert np.abs(wet[:100]).max() < 1e-8 and np.argmax(np.abs(wet)) == 100  # rounding of the transform
    assert np.abs(wet[101:1000]).max() > 0 and np.square(wet).sum() == pytest.approx(np.square(click).sum(), rel=1e-5)

    for ratio in (0.0, 12.0):
        added = augment.noise(wave, np.random.default_rng(2), ratio)
        assert 10 * np.log10(np.square(wave).mean() / np.square(added).mean()) == pytest.approx(ratio, abs=1e-3)

    level = Augmentation(level=12.0)
    changed = [level.apply(wave, 16000, np.random.default_rng(seed)) for seed in range(50)]
    gains = [20 * np.log10(np.abs(out).max() / np.abs(wave).max()) for out in changed]
    assert min(gains) < -8 and max(np.abs(out).max() for out in changed) <= 1 and all(o.dtype == "f4" for o in changed)


def test_settings_are_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    stage = {"steps": 5, "crop_seconds": 0.48, "augment": {"speed": 0.1, "level": 3}}
    path.write_text(yaml.safe_dump(PLAIN | {"stages": {"tune": stage}}))
    config = read_config(path).stages["tune"]
    assert config.augment == Augmentation(speed=0.1, level=3.0)
    assert read_config(path, {"augment": {"level": 0.0}}).stages["tune"].augment == Augmentation(speed=0.1)
    path.write_text(yaml.safe_dump(PLAIN | {"stages": {"tune": stage | {"augment": {"pitch": 0.1}}}}))
    with pytest.raises(InputError, match=r"stages.tune.augment: unknown key 'pitch'"):
        read_config(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speed": 0.9}, "augment.speed is 0.9"),
        ({"room": 1.5}, "augment.room is 1.5, expected a share"),
        ({"noise_db": -1.0}, "augment.noise_db is -1.0, expected 0 dB or more"),
    ],
)
def test_mistakes_are_named(values: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Augmentation(**values)
