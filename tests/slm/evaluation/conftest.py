"""A tokenized dataset whose cuts say who speaks, and a random language model of its codec."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.bulk.executors.inline import Inline
from pipelines.bulk.plan import Sharding
from pipelines.bulk.run import Job, tokenize
from pipelines.dataset.token_dataset import TokenDataset
from slm.checkpoint import save_lm
from slm.model.transformer import LanguageModel, ModelConfig
from slm.vocabulary import Vocabulary
from tokenizer.audio import write_wav

SPEAKERS = {"anna": "F", "ben": "M", "cleo": "F", "dan": "M"}


def wave_of(seed: int, seconds: float, pitch: float) -> np.ndarray:
    """float32 [S] at 16 kHz: a buzz of a wandering loudness."""
    random = np.random.default_rng(seed)
    count = int(seconds * 16000)
    knots = np.arange(0, count + 1600, 1600)
    loudness = np.interp(np.arange(count), knots, random.uniform(0, 0.3, len(knots)))
    phase = 2 * np.pi * pitch * np.arange(count) / 16000
    wave = sum(np.sin(n * phase) / n for n in range(1, 8)) * loudness
    return (wave + random.normal(0, 0.003, count)).astype(np.float32)


@pytest.fixture(scope="session")
def spoken_dataset(tiny_codec_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder written by `tokenize`: 3 cuts of 2.1 to 3 s of each of 4 speakers, in 2 sources, and a short one."""
    folder = tmp_path_factory.mktemp("spoken")
    lines = []
    for number in range(13):
        speaker = list(SPEAKERS)[number % 4]
        seconds = 0.5 if number == 12 else float(np.random.default_rng(number).uniform(2.1, 3.0))
        wave = wave_of(number, seconds, 90 + 40 * (number % 4))
        write_wav(folder / f"{number}.wav", wave, 16000)
        recording = {
            "id": f"clip-{number}",
            "sources": [{"type": "file", "channels": [0], "source": str(folder / f"{number}.wav")}],
            "sampling_rate": 16000,
            "num_samples": len(wave),
            "duration": len(wave) / 16000,
            "channel_ids": [0],
        }
        place = {"start": 0.0, "duration": len(wave) / 16000, "channel": 0}
        said = {"id": f"clip-{number}", "recording_id": f"clip-{number}", **place, "speaker": speaker}
        said |= {"gender": SPEAKERS[speaker], "custom": {"source": "ab" if number % 4 < 2 else "cd"}}
        lines.append(
            {"id": f"clip-{number}", **place, "supervisions": [said], "recording": recording, "type": "MonoCut"}
        )
    (folder / "cuts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path_factory.mktemp("spoken-tokens") / "out"
    tokenize(Job(str(folder / "cuts.jsonl"), out, str(tiny_codec_dir), Sharding(cuts=5), executor=Inline()))
    return out


@pytest.fixture(scope="session")
def random_lm(spoken_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of a model with random weights."""
    dataset = TokenDataset(spoken_dataset)
    vocabulary = Vocabulary(dataset.codebook_size, dataset.token_rate, dataset.codec["name"], dataset.fingerprint)
    torch.manual_seed(0)
    config = ModelConfig(width=16, layers=1, heads=2, kv_heads=1, ffn_width=24, context=128, tied_embeddings=False)
    folder = tmp_path_factory.mktemp("random-lm")
    save_lm(LanguageModel(config, vocabulary.size), vocabulary, folder)
    return folder
