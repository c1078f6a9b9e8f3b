"""Small token datasets made by the real pipeline, and a language model briefly trained on one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.bulk.executors.inline import Inline
from pipelines.bulk.plan import Sharding
from pipelines.bulk.run import Job, tokenize
from slm.model.transformer import ModelConfig
from slm.training.settings import TrainSettings
from slm.training.train import train
from tokenizer.audio import write_wav

PANGRAM = "the quick brown fox jumps over lazy dogs while seven wizards brew a potion of jade"
MODEL = ModelConfig(width=32, layers=2, heads=4, kv_heads=2, ffn_width=64, context=48, dropout=0.1)
SETTINGS = TrainSettings(
    steps=24,
    rows=4,
    rows_at_once=2,
    row_tokens=64,
    learning_rate=1e-2,
    final_learning_rate=1e-3,
    warmup_steps=3,
    beta1=0.9,
    beta2=0.95,
    weight_decay=0.1,
    clip_norm=1.0,
    bfloat16=False,
    validate_every=8,
    validation_rows=4,
    patience=0,
    held_out_fraction=0.2,
    save_every=6,
    keep_checkpoints=2,
    seed=3,
)


def sentences(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(PANGRAM.split(), int(random.integers(1, 5)))) for _ in range(count)]


def chirps(seed: int, seconds: float) -> np.ndarray:
    """float32 [S] at 16 kHz: harmonics of a wandering pitch under a wandering loudness."""
    random = np.random.default_rng(seed)
    count = int(seconds * 16000)
    knots = max(2, int(seconds * 8))
    at = np.linspace(0, knots - 1, count)
    pitch = np.interp(at, np.arange(knots), random.uniform(80, 400, knots))
    loudness = np.interp(at, np.arange(knots), random.uniform(0, 0.3, knots))
    phase = 2 * np.pi * np.cumsum(pitch) / 16000
    wave = sum(np.sin(n * phase) / n for n in range(1, 8)) * loudness
    return (wave + random.normal(0, 0.003, count)).astype(np.float32)


@pytest.fixture(scope="session")
def lm_config() -> ModelConfig:
    return MODEL


@pytest.fixture(scope="session")
def lm_settings() -> TrainSettings:
    """Float32, 24 steps, a validation every 8, a checkpoint every 6."""
    return SETTINGS


@pytest.fixture(scope="session")
def token_dataset(tiny_codec_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder written by `tokenize` with the tiny codec: 20 cuts of 0.3 to 3 s."""
    folder = tmp_path_factory.mktemp("speech")
    for i, seconds in enumerate(np.random.default_rng(0).uniform(0.3, 3.0, 20)):
        write_wav(folder / f"{i:02d}.wav", chirps(i, seconds), 16000)
    out = tmp_path_factory.mktemp("tokens") / "out"
    tokenize(Job(str(folder), out, str(tiny_codec_dir), Sharding(hours=0.003), executor=Inline()))
    return out


@pytest.fixture(scope="session")
def tiny_lm_dir(token_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training run on `token_dataset`."""
    out = tmp_path_factory.mktemp("lm") / "run"
    train(MODEL, SETTINGS, [token_dataset], out, show_progress=False)
    return out


@pytest.fixture(scope="session")
def record_noise() -> Callable[..., dict[str, Any]]:
    """Writes a recording of noise that swells, `samples` of it, and gives its Lhotse entry."""

    def record(folder: Path, number: int, random: np.random.Generator, samples: int) -> dict[str, Any]:
        wave = random.normal(0, 0.1, samples) * np.linspace(0, 1, samples)
        write_wav(folder / f"{number}.wav", wave.astype(np.float32), 16000)
        return {
            "id": f"r{number}",
            "sources": [{"type": "file", "channels": [0], "source": str(folder / f"{number}.wav")}],
            "sampling_rate": 16000,
            "num_samples": samples,
            "duration": samples / 16000,
            "channel_ids": [0],
        }

    return record


@pytest.fixture(scope="session")
def texted_dataset(record_noise: Any, tiny_codec_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder written by `tokenize`: 16 cuts of 0.3 to 0.8 s of noise, 14 of them with a text."""
    folder, lines = tmp_path_factory.mktemp("texted"), []
    random = np.random.default_rng(3)
    for number, text in enumerate(sentences(16, seed=4)):
        samples = int(random.integers(4800, 12800))
        recording = record_noise(folder, number, random, samples)
        place = {"start": 0.0, "duration": samples / 16000, "channel": 0}
        said = {"id": f"s{number}", "recording_id": f"r{number}", **place} | ({"text": text} if number % 8 else {})
        lines.append({"id": f"c{number}", **place, "supervisions": [said], "recording": recording, "type": "MonoCut"})
    (folder / "cuts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path_factory.mktemp("texted-tokens") / "out"
    tokenize(Job(str(folder / "cuts.jsonl"), out, str(tiny_codec_dir), Sharding(cuts=6), executor=Inline()))
    return out
