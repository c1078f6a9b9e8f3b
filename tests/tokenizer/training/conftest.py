"""A corpus of chirps, and settings of stages that take seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenizer.training.config import StageConfig
from tokenizer.training.corpus import Corpus
from tokenizer.training.stages import STAGES


def make_corpus(seconds: tuple[float, ...] = (6.0, 3.0, 0.125), rate: int = 16000) -> Corpus:
    """Chirps, some of them with a text."""
    ends = np.cumsum([int(rate * s) for s in seconds])
    t = np.arange(ends[-1]) / rate
    samples = (8000 * np.sin(400 * t + 900 * np.sin(t))).astype("<i2")
    return Corpus(samples, ends, tuple("a chirp" if i % 2 == 0 else "" for i in range(len(seconds))))


def quick(stage: str, **changes: Any) -> StageConfig:
    """Six steps of a stage with its own losses."""
    values: dict[str, Any] = {
        "steps": 6,
        "batch_size": 2,
        "crop_seconds": 0.48,
        "learning_rate": 1e-3,
        "final_learning_rate": 1e-4,
        "schedule": "cosine",
        "warmup_steps": 2,
        "validate_every": 3,
        "validation_batches": 2,
        "save_every": 2,
        "adversary_width": 1 / 64,
        "losses": {name: weight for name, weight in STAGES[stage].losses.items() if weight},
    }
    return StageConfig(**(values | changes))


def records(out: Path) -> list[dict]:
    """The log's lines without their times."""
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return make_corpus()
