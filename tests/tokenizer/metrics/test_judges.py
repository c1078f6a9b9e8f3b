"""Neural judges: one on a small random model, and none of them stops a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tokenizer.metrics import judges


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, 16_000).astype(np.float32)


def nothing_there(*_args, **_options):
    raise OSError("no such model. Try another day")


def test_what_cannot_be_had_is_named(monkeypatch) -> None:
    monkeypatch.setattr("torch.hub.load", nothing_there)
    monkeypatch.setattr(judges, "_only_cached", nothing_there)
    assert judges.load_judges("cpu") == ({}, dict.fromkeys(judges.MEASURES, "OSError: no such model"))


def test_a_model_that_fails_at_work_is_left_out(monkeypatch) -> None:
    class Broken:
        to = eval = lambda self, *_: self

        def __call__(self, wave, rate):
            raise ValueError("expects stereo")

    monkeypatch.setattr("torch.hub.load", lambda *_args, **_options: Broken())
    monkeypatch.setattr(judges, "_only_cached", nothing_there)
    loaded = judges.load_judges("cpu")
    assert not loaded.judges and loaded.missing["utmos"] == "ValueError: expects stereo"


def test_a_speaker_is_like_itself(tmp_path: Path, monkeypatch) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    convolutions = {"conv_dim": (8, 8), "conv_kernel": (400, 3), "conv_stride": (320, 2)}
    speaker = {"tdnn_dim": (16, 16), "tdnn_kernel": (3, 1), "tdnn_dilation": (1, 1), "xvector_output_dim": 8}
    config = transformers.WavLMConfig(**sizes, **convolutions, **speaker, num_conv_pos_embeddings=4)
    transformers.WavLMForXVector(config).save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    monkeypatch.setattr(judges, "SPEAKER", str(tmp_path))
    judge = judges._speaker("cpu")
    assert judge(noise(0), noise(0)) == pytest.approx(1)
    assert judge(noise(0), 3 * noise(1)) < 0.9999
