"""Which steps are recorded on a GPU, and that a recorded one is the same step."""

from __future__ import annotations

import pytest
import torch

from tests.tokenizer.training.conftest import make_corpus, quick, records
from tokenizer import Codec
from tokenizer.runs.ranks import Ranks
from tokenizer.training import loop
from tokenizer.training.batches import Crops, Rates
from tokenizer.training.loop import run_stage
from tokenizer.training.step import captures
from tokenizer.training.teachers import new_teacher

GAME = {"adversarial": 1.0, "feature_matching": 1.0, "multi_mel": 1.0, "entropy": 0.1, "intelligibility": 1.0}


def test_only_crops_on_one_gpu_without_texts_are_captured(tiny_codec: Codec) -> None:
    crops = quick("end_to_end")
    assert captures(crops, None, Ranks(), "cuda") and captures(crops, None, Ranks(), "cuda:1")
    assert not captures(crops, None, Ranks(), "cpu")
    assert not captures(crops, None, Ranks(0, 2), "cuda")
    assert not captures(quick("end_to_end", crop_seconds=None), None, Ranks(), "cuda")
    assert not captures(crops, new_teacher(tiny_codec.config.encoder), Ranks(), "cuda")
    assert not captures(quick("end_to_end", losses={"recognition": 1.0, "multi_mel": 1.0}), None, Ranks(), "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_captured_steps_are_the_steps(tiny_codec: Codec, tmp_path, monkeypatch) -> None:
    found = {}
    for name in ("captured", "plain"):
        if name == "plain":
            monkeypatch.setattr(loop, "captures", lambda *_: False)
        codec = Codec(tiny_codec.config)
        codec.load_state_dict(tiny_codec.state_dict())
        config = quick("end_to_end", steps=9, optimizer="muon", average=0.9, losses=GAME, bfloat16=False)
        training = Crops(make_corpus(), Rates(16000, 16000, 1280), 1280 * 6, 2, 0)
        run_stage("end_to_end", config, codec.train(), None, training, None, tmp_path / name, device="cuda")
        found[name] = records(tmp_path / name)
    assert len(found["captured"]) == 9
    for captured, plain in zip(found["captured"], found["plain"], strict=True):
        assert captured == pytest.approx(plain, rel=0.02, abs=0.02)
