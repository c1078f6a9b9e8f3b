"""Every stage lowers its loss and changes nothing but what it trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.evaluation.ceiling import from_latents
from tests.tokenizer.training.conftest import make_corpus, quick, records
from tokenizer import Codec
from tokenizer.training.batches import Crops, Rates, Utterances
from tokenizer.training.config import TeacherConfig, TrainingConfig
from tokenizer.training.loop import run_stage
from tokenizer.training.stages import STAGES, squared_error
from tokenizer.training.teachers import new_teacher
from tokenizer.training.train import train

TRAINED = {
    "teacher": ("decoder.",),  # and the teacher
    "decoder": ("decoder.",),
    "posemb": ("encoder.encoder.positional_embedding.",),
    "encoder": ("encoder.",),
    "quantizer": ("compressor.", "decompressor."),
    "joint": ("encoder.", "compressor.", "decompressor."),
    "end_to_end": ("encoder.", "compressor.", "decompressor.", "decoder."),
    "tune": ("decoder.",),
}
RATES = Rates(16000, 16000, 1280)


@pytest.fixture
def codec(tiny_codec: Codec) -> Codec:
    torch.manual_seed(5)
    codec = Codec(tiny_codec.config)
    codec.load_state_dict(tiny_codec.state_dict())
    return codec.train()


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_loss_falls_and_only_what_is_trained_changes(name: str, codec: Codec, tmp_path: Path) -> None:
    torch.manual_seed(6)
    teacher = new_teacher(codec.config.encoder)
    config = quick(name, steps=12, learning_rate=3e-3, validate_every=6, save_every=100, bfloat16=False)
    crops = Crops(make_corpus(), RATES, 1280 * 6, 2, seed=0)
    fixed = FirstOnly(crops)  # one batch again and again: how fast it falls is no matter of luck
    before = {key: value.clone() for key, value in codec.state_dict().items()}
    taught = {key: value.clone() for key, value in teacher.state_dict().items()}
    if name == "posemb":  # the stage starts from the teacher's weights
        before |= {f"encoder.{key}": value for key, value in taught.items()}
    run_stage(name, config, codec, teacher, fixed, fixed, tmp_path)
    held_out = [row["held_out"] for row in records(tmp_path) if "held_out" in row]
    assert held_out[-1] < held_out[0]
    changed = {key for key, value in codec.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(key.startswith(TRAINED[name]) for key in changed)
    assert {prefix for prefix in TRAINED[name] if any(key.startswith(prefix) for key in changed)} == set(TRAINED[name])
    teacher_changed = any(not torch.equal(value, taught[key]) for key, value in teacher.state_dict().items())
    assert teacher_changed == (name == "teacher")


class FirstOnly:
    """The first batch under every number."""

    def __init__(self, batches: Crops) -> None:
        self.batches, self.per_epoch = batches, 1

    def __getitem__(self, step: int):
        return self.batches[0]


def test_stages_follow_one_another_and_go_on(tiny_codec: Codec, tmp_path: Path) -> None:
    stages = {name: quick(name, steps=2, warmup_steps=0) for name in STAGES if name not in ("end_to_end", "tune")}
    config = TrainingConfig(tiny_codec.config, TeacherConfig(), stages)
    whole, stopped = train(config, make_corpus(), make_corpus((3.0, 2.0)), tmp_path / "whole")
    assert stopped is None
    for name in stages:
        train(config, make_corpus(), make_corpus((3.0, 2.0)), tmp_path / "parts", stage=name)
    parts = Codec.from_pretrained(str(tmp_path / "parts" / "joint" / "codec"))
    assert parts.fingerprint == whole.fingerprint
    again, _ = train(config, make_corpus(), make_corpus((3.0, 2.0)), tmp_path / "whole")
    assert again.fingerprint == whole.fingerprint


def test_whole_utterances_and_epochs(codec: Codec, tmp_path: Path) -> None:
    batches = Utterances(make_corpus((1.0, 2.0, 1.5, 0.7, 0.9)), RATES, 16000 * 20, 2, seed=0)
    config = quick("quantizer", steps=0, epochs=2.0, crop_seconds=None, schedule="plateau")
    run_stage("quantizer", config, codec, None, batches, batches, tmp_path)
    assert len(records(tmp_path)) == 4


def test_a_frozen_part_stays(codec: Codec, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in codec.state_dict().items()}
    crops = Crops(make_corpus(), RATES, 1280 * 6, 2, seed=0)
    run_stage("end_to_end", quick("end_to_end", freeze=("decompressor.refiner",)), codec, None, crops, None, tmp_path)
    changed = {key for key, value in codec.state_dict().items() if not torch.equal(value, before[key])}
    assert any(key.startswith("decompressor.layers.") for key in changed)
    assert not any(key.startswith("decompressor.refiner.") for key in changed)


def test_unbinarised_training_hears_the_decoder_of_the_latents(tiny_codec: Codec) -> None:
    """So its wave is that of the evaluation's row "latents not binarised", and not the codec's."""
    codec = Codec(tiny_codec.config)
    codec.load_state_dict(tiny_codec.state_dict())
    batch = Crops(make_corpus(), RATES, 1280 * 6, 2, seed=0)[0]
    with torch.no_grad():
        waves = [
            STAGES["end_to_end"](codec, None, quick("end_to_end", binarise=binarise)).eval()(batch).wave
            for binarise in (True, False)
        ]
        latents = [from_latents(codec, row[None])[0] for row in batch.wave]
    binarised, unbinarised = waves
    assert binarised is not None and unbinarised is not None
    torch.testing.assert_close(unbinarised, torch.stack(latents), rtol=0, atol=1e-5)  # two orders of float32 sums
    assert (binarised - unbinarised).abs().max() > 1e-3  # a hundred times that


def test_squared_error_counts_frames_of_both_that_are_there() -> None:
    got, wanted = torch.zeros(2, 4, 3), torch.zeros(2, 3, 3)
    wanted[0, 0], wanted[1, 1], got[0, 3] = 1.0, 7.0, 9.0
    assert float(squared_error(got, wanted, torch.tensor([3, 1]))) == pytest.approx(1 / 4)
    np.testing.assert_allclose(float(squared_error(got, wanted, torch.tensor([4, 3]))), (1 + 49) / 6)


def test_what_is_not_trained_drops_nothing_out(tiny_codec: Codec) -> None:
    teacher = new_teacher(tiny_codec.config.encoder)
    stage = STAGES["encoder"](Codec(tiny_codec.config), teacher, quick("encoder")).train()
    assert stage.codec.encoder.training and not teacher.training and not stage.codec.decoder.training
